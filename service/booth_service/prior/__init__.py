"""Class images: what the base model itself draws for the class, made once and kept."""
