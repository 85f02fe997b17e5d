"""The VLM behind DINOv2: photographs, what lies on them, what is asked, and its parts. See `examples.train_photo_vlm`."""
