"""Checks that implementations agree: with the original Scenic code and between the twins."""
