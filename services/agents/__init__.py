"""The workers that run turns."""
