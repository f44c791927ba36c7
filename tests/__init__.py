"""Tests of the platform, and what they run on."""
