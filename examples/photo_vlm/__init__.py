"""The VLM behind DINOv2: photographs, what lies on them, what is asked; see `examples.train_photo_vlm`."""
