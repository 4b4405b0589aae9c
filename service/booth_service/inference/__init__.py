"""Serving: many fully fine-tuned models behind one pipeline skeleton."""
