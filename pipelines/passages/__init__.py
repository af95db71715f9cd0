"""Turns documents into passages, token blocks and slices. Loads a tokenizer, but no model."""
