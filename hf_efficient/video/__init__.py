"""Video as a low-resolution stream and tiny networks that know this very video: STDO and JSTDO (arXiv 2303.08331).

From the bottom up: `media`, `writing` (files); `patches`, `chunking`, `routing` (pure); `backbones`, `weights`,
`experts`, `inference` (networks); `settings`, `store`, `overfit`, `fit` (encode); `bundle`, `decode` (play);
`evaluation`, `rate` (measure); and the Hugging Face faces `configuration_stdo`, `modeling_stdo`, `pipeline_stdo`.
"""
