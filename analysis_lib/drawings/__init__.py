"""Drawings that belong to one chapter: a result in, a figure out."""
