"""Kept for tools that call it; everything is declared in pyproject.toml."""

from setuptools import setup

setup()
