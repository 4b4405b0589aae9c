"""Fine-tuning UNet and text encoder under DeepSpeed ZeRO on Ray Train."""
