"""Which patches of a video are learned together (`FitSettings.method`), and by what (`FitSettings.backbone`)."""

from .row import Kind, Method, Only, Paper

_STDO = Paper(
    "Towards High-Quality and Efficient Video Super-Resolution via Spatial-Temporal Data Overfitting",
    2023, "2303.08331", "CVPR",
)  # fmt: skip
_LEVELS = ("num_chunks", "edges")
_ONE_SIZE = (Only("warm_start", lambda c: c.same_networks, "networks of one size"),)

VIDEO = Kind(
    budget="video",
    choice="method",
    call='fit_video("in.mp4", "bundle/", {})',
    runs="fit_video and `hf-efficient stdo encode`, one process or several; CPU and CUDA",
    page="stdo.md",
    config="hf_efficient.video.settings:FitSettings",
    methods=(
        Method(
            "jstdo",
            "one network on the data-aware sample",
            "hf_efficient.video.methods.jstdo:JSTDO",
            _STDO,
            reads=_LEVELS,
            needs=("scores",),
            published={"num_features": 32, "num_blocks": 16, "halo": 0},
        ),
        Method(
            "stdo",
            "a network for each chunk of similar difficulty",
            "hf_efficient.video.methods.stdo:STDO",
            _STDO,
            reads=(*_LEVELS, "warm_start"),
            needs=("scores",),
            only=_ONE_SIZE,
            published={"num_chunks": 4, "warm_start": "none", "num_features": 32, "num_blocks": 16, "halo": 0},
        ),
        Method(
            "delta",
            "the general network and what this video changes of it; the cheapest part that pays is sent",
            "hf_efficient.video.methods.delta:DeltaToGeneral",
        ),
        Method("single", "one network on all patches", "hf_efficient.video.methods.single:Single"),
        Method(
            "time",
            "a network for each time segment (NAS)",
            "hf_efficient.video.methods.time:Time",
            Paper("Neural Adaptive Content-aware Internet Video Delivery", 2018, venue="OSDI"),
            reads=("num_chunks", "warm_start"),
            only=_ONE_SIZE,
        ),
    ),
)

_NETWORKS = "hf_efficient.video.networks.backbones"

BACKBONES = Kind(
    budget="video networks",
    choice="backbone",
    call='fit_video("in.mp4", "bundle/", method="jstdo", {})',
    runs="fit_video, STDOModel and STDOPipeline; CPU and CUDA",
    page="stdo.md",
    config="hf_efficient.video.settings:FitSettings",
    methods=(
        Method(
            "wdsr",
            "wide activation in residual blocks, with weight norm while it trains",
            f"{_NETWORKS}.wdsr:WDSR",
            Paper("Wide Activation for Efficient and Accurate Image Super-Resolution", 2018, "1808.08718"),
            reads=("expansion",),
            published={"num_features": 32, "num_blocks": 16},
        ),
        Method(
            "luma_wdsr",
            "the same on luma alone, chroma by the bicubic filter; what the general networks are",
            f"{_NETWORKS}.luma:LumaWDSR",
            Paper("Wide Activation for Efficient and Accurate Image Super-Resolution", 2018, "1808.08718"),
            reads=("expansion",),
        ),
        Method(
            "luma_filter",
            "a 5 x 5 filter of luma for each sub-pixel position, chroma by the bicubic filter",
            f"{_NETWORKS}.luma:LumaFilter",
        ),
        Method(
            "espcn",
            "plain layers and a sub-pixel convolution",
            f"{_NETWORKS}.espcn:ESPCN",
            Paper(
                "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural "
                "Network", 2016, "1609.05158", "CVPR",
            ),
            published={"num_features": 64, "num_blocks": 1},
        ),
        Method(
            "edsr",
            "residual blocks without batch norm",
            f"{_NETWORKS}.edsr:EDSR",
            Paper(
                "Enhanced Deep Residual Networks for Single Image Super-Resolution",
                2017, "1707.02921", "CVPR workshops",
            ),
            published={"num_features": 64, "num_blocks": 16},
        ),
        Method(
            "srcnn",
            "bicubic enlargement, then a few layers",
            f"{_NETWORKS}.srcnn:SRCNN",
            Paper("Image Super-Resolution Using Deep Convolutional Networks", 2016, "1501.00092", "IEEE TPAMI"),
            published={"num_features": 64, "num_blocks": 1},
        ),
        Method(
            "vdsr",
            "bicubic enlargement plus a deep residual",
            f"{_NETWORKS}.vdsr:VDSR",
            Paper(
                "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", 2016, "1511.04587", "CVPR"
            ),
            published={"num_features": 8, "num_blocks": 18},
        ),
    ),
)  # fmt: skip
