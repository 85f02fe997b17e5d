"""Bundles for players without torch: networks as ONNX, a player on onnxruntime and PyAV, a page for the browser.

- `folder`: the exported folder, written and read. Without torch.
- `player`: the player on onnxruntime and PyAV. Without torch.
- `networks`: networks as ONNX.
- `archive`: the player in one file.
- `web`: the page, and the files of onnxruntime-web.
- `export`: from a bundle to a folder.
"""
