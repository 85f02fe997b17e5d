"""Video as a low-resolution stream and tiny networks overfitted to this one video: STDO and JSTDO (arXiv 2303.08331).

From the bottom up; each imports only those before it:

- `methods`: which patches are learned together: STDO, JSTDO and baselines.
- `codecs`, `patches`, `routing`: encoders, the grid of patches, and the map of which network enlarges which patch.
- `networks`: backbones, their weights, a whole frame through several of them, and the transformers model.
- `settings`: how a video becomes a bundle.
- `files`: video files and bundles, read and written.
- `play`: from a bundle to frames or a video file, and the diffusers pipeline.
- `measure`: PSNR, SSIM, VMAF, bit rates; whether a bundle breaks even.
- `encode`: from a video file to a bundle.
"""
