"""Layer 3: sound and pictures to tensors: audio, fbank, CMVN statistics, augmentation, images, stored features."""
