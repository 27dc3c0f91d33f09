# shellcheck shell=bash
# The environment of this recipe's commands, to be sourced from the recipe's folder; utils/path.sh tells more.
. ../../utils/path.sh
