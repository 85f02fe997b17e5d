# %% [markdown]
# # A video as a small stream, and a network that knows it
#
# `fit_video` makes the video smaller and fits a general network to it that enlarges it again: what this video changes
# of it is sent, about a kilobyte (`method="jstdo"`: a network from scratch, sent whole). The bundle plays anywhere
# torch runs. At equal quality nearly all that is saved is the small stream's: compare before you use it.
#
# `pip install '.[video]'`
# %%
from hf_efficient import STDOPipeline, fit_video

VIDEO = "in.mp4"
# %%
bundle = fit_video(VIDEO, "runs/video_bundle", scale=2, steps=20)
# %% [markdown]
# Play it: frames as pictures, or a file.
# %%
pipeline = STDOPipeline.from_pretrained("runs/video_bundle")
frames = pipeline(output_type="pil", max_frames=4)[0]
print(len(frames), frames[0].size)
# %% [markdown]
# `hf-efficient stdo evaluate runs/video_bundle in.mp4` measures it, `hf-efficient stdo compare` sets it beside codecs,
# and `make space-video` plays it in the browser.
