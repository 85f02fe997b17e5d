"""Video as a low-resolution stream and tiny networks that know this very video: STDO and JSTDO (arXiv 2303.08331).

- `methods`: which patches are learned together: STDO, JSTDO and baselines.
- `patches`, `routing`: the grid of patches, and the map that says which network enlarges which patch.
- `networks`: backbones, their weights, a whole frame through several of them, and the transformers model.
- `settings`, `encode`: from a video file to a bundle.
- `files`, `codecs`: video files and bundles, read and written.
- `play`: from a bundle to frames or a video file, and the diffusers pipeline.
- `measure`: PSNR, SSIM, VMAF, bit rates; whether a bundle breaks even.
"""
