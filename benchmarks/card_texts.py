"""What the cards say of each method, and which figures of result files they show."""

from dataclasses import dataclass

from huggingface_hub import EvalResult

from benchmarks.numbers import ROOT, figures, filled

FOLDER = ROOT / "model_cards"
RESULTS = "../benchmarks/results"
#: Short name of a data set -> (its id, its name, the task, of the Hub).
DATA = {
    "photo": ("photo-scenes", "480 scenes on 24 photographs", "visual-question-answering"),
    "tiny": ("tiny-vlm-eval", "512 scenes of garments", "visual-question-answering"),
    "garments": ("fashion-mnist", "Fashion-MNIST, 500 pictures", "image-classification"),
    "more garments": ("fashion-mnist", "Fashion-MNIST, 10,000 pictures", "image-classification"),
    "news": ("newsgroups", "20 newsgroups", "text-classification"),
    "bikes": ("bikes", "bikes.mp4, 640 x 272, x2", "video-super-resolution"),
    "time": ("random-input", "random input", "training-speed"),
}


@dataclass(frozen=True)
class Result:
    """A figure of a result file.

    Args:
        data: key of `DATA`.
        what: the words before the figure.
        figure: how it is written; the digits are filled in.
        place: file under benchmarks/results, and the place in it as `benchmarks/numbers.py` reads it.
        metric: of the metadata.
    """

    data: str
    what: str
    figure: str
    place: str
    metric: str = "accuracy"

    @property
    def link(self) -> str:
        """The figure as Markdown, with where it comes from."""
        file, _, place = self.place.partition(" > ")
        return f'[{filled(self.figure, FOLDER, f"{RESULTS}/{self.place}")}]({RESULTS}/{file} "{place}")'

    @property
    def evaluation(self) -> EvalResult:
        """The first figure as metadata."""
        id_, name, task = DATA[self.data]
        value = float(figures(FOLDER, f"{RESULTS}/{self.place}")[0])
        return EvalResult(task, id_, name, self.metric, value, metric_name=self.what)


@dataclass(frozen=True)
class Card:
    """What a method's card says.

    Args:
        title: of the card.
        text: what it is.
        load: three lines that use it.
        page: of docs.
        terms: on which rivals are compared, and what the intervals are.
        command: that makes the figures; several joined by "` and `".
        results: the figures, losses among them.
        limits: when not to use it.
        tags: by which the Hub finds it.
    """

    title: str
    text: str
    load: str
    page: str
    terms: str
    command: str
    results: tuple[Result, ...]
    limits: str
    tags: tuple[str, ...]


INTERVALS = "intervals are 95 %"
WORK, VIT = "19M weights > bidst", "vit, 500, 40 % noise zosam"
FILM = "bbb_full_720p.mp4 56 527,905 delta > bits over"
#: Data set -> the table on equal footing.
FOOTING = {"tiny": "equal_footing_seeds/table.md", "photo": "equal_footing_photo/table.md"}
ALL = "anchors > all tokens > accuracy > %"
#: Comparison of that table -> against whom.
REAL, ANY = "ID-Pruner against methods that keep real tokens", "ITG against any method"
RIVALS = {REAL: "the best other method that keeps real tokens", ANY: "the best other method"}


def _right(data: str, method: str, kept: str, figure: str, how: str = "") -> Result:
    """What a method's default answers rightly with so many tokens."""
    place = f"One row > {method} (default), with sizes > {kept.split()[0]}"
    return Result(data, f"{kept}{how}: % right", figure, f"{FOOTING[data]} > {place}")


def _ahead(data: str, comparison: str, kept: str, figure: str) -> Result:
    """How far it is ahead of the rival that validation names."""
    place = f"What decides > {comparison} {kept.split()[0]} > ahead by, points#1"
    return Result(data, f"{kept}: difference from {RIVALS[comparison]}, points", figure, f"{FOOTING[data]} > {place}")


def _tokens(name: str, title: str, text: str, results: tuple[Result, ...], limits: str, tag: str) -> Card:
    """The card of a method for visual tokens."""
    load = (
        "from hf_efficient import TokenPrunerConfig, attach_token_pruner\n\n"
        f'attach_token_pruner(model, processor, TokenPrunerConfig(method="{name}", budget=64))'
    )
    terms = f"{INTERVALS}, over scenes and two training seeds; others had the same options, chosen on validation scenes"
    command = "python -m benchmarks.representation.equal_footing"
    text += " Method and code are of this package."
    tags = (tag, "vision-language-model", "training-free")
    return Card(title, text, load, f"{name}.md", terms, command, results, limits, tags)


CARDS = {
    "id_pruner": _tokens(
        "id_pruner",
        "ID-Pruner: K visual tokens that are important and stand for all",
        "Keeps exactly K of the visual tokens of a vision-language model, without training: importance and coverage "
        "are measured apart and joined in one submodular objective.",
        (
            _right("photo", "id_pruner", "32 of 256 tokens", "83.0", ", proportional attention"),
            _ahead("photo", REAL, "32 of 256 tokens", "+2.8 (0.9 to 4.8)"),
            _ahead("photo", REAL, "64 of 256 tokens", "+1.1"),
            _right("tiny", "id_pruner", "9 of 144 tokens", "95.1", ", proportional attention"),
            _ahead("tiny", REAL, "2 of 144 tokens", "+7.1"),
        ),
        "With half of the tokens the better methods are level. Pointing and text suffer first: they want a quarter or "
        "more.",
        "visual-token-pruning",
    ),
    "itg": _tokens(
        "itg",
        "ITG: K new tokens made of all visual tokens",
        "Makes K tokens that are the best approximation of the weighted distribution of all tokens, without training; "
        "attention counts each for as many as it stands for.",
        (
            _right("photo", "itg", "32 of 256 tokens", "86.2"),
            _ahead("photo", ANY, "32 of 256 tokens", "+6.0 (4.2 to 7.8)"),
            _right("tiny", "itg", "9 of 144 tokens", "95.1"),
            _ahead("tiny", ANY, "9 of 144 tokens", "+0.4 (−0.5 to 1.1)"),
        ),
        "Wants sdpa or eager attention in the language model, for the sizes: without them it loses points "
        "at an eighth of the tokens and fewer. With half and a quarter of the tokens, and on mostly empty pictures "
        "with any number, other methods are level with it.",
        "visual-token-reduction",
    ),
    "bidst": Card(
        "BiDST: sparse models and sparse adapters whose topology is learned",
        "Bi-level dynamic sparse training as a PEFT method: which weights are active is learned while they are "
        "trained, with exactly k of them at every step. After Ji et al., ICML 2024; its equations are in part "
        "reconstructed.",
        "from hf_efficient import BiDSTConfig\nfrom peft import get_peft_model\n\n"
        "model = get_peft_model(model, BiDSTConfig(sparsity=0.95))  # then any Trainer",
        "bidst.md",
        f"{INTERVALS}; others had the same options, and the best other is the best of these very runs",
        "python -m benchmarks.sparsity.sparse_training` and `python -m benchmarks.sparsity.sparse_finetuning",
        (
            Result("news", "from scratch, 98 % zeros, ahead of the best other method, points", "+3.9 ± 0.5",
                   "sparse_training/table.md > newsgroups 98% > bidst minus the best other"),
            Result("more garments", "ResNet from scratch, 90 % zeros, ahead of the best other method, points",
                   "-0.5 ± 0.4", "sparse_training/table.md > resnet 90% > bidst minus the best other"),
            Result("news", "small network fine-tuned to 95 % zeros, ahead of RigL, points", "+2.6 ± 0.8",
                   "sparse_finetuning/table.md > moved > rigl > 95%: BiDST minus it"),
            Result("news", "top layers of MiniLM at 95 % zeros, ahead of RigL with BiDST's gradients, points",
                   "-0.9 ± 0.8", "sparse_finetuning/table.md > newsgroups > rigl > 95%: BiDST minus it"),
        ),
        f"Its mask work is [2.5]({RESULTS}/mask_work/table.md \"{WORK} > 98%: times RigL's\") to "
        f"[4.9]({RESULTS}/mask_work/table.md \"{WORK} > 90%: times RigL's\") times RigL's. On "
        "images others are level with it, and in the fine-tuning of a small network those that start dense. Adapters "
        "of few values forget more of the old task than LoRA at the rate that is best for the new one.",
        ("sparsity", "dynamic-sparse-training", "peft"),
    ),
    "s2_sam": Card(
        "S2-SAM: sharpness-aware minimization in one pass",
        "The gradient is taken a distance uphill along the gradient of the step before: flatter minima at the price of "
        "plain training. After Ji et al., NeurIPS 2024; the code is our own.",
        "from hf_efficient import S2SAMTrainer, SAMArguments\n\n"
        "S2SAMTrainer(model, args, train_dataset=data, sam_args=SAMArguments(rho=0.05)).train()",
        "s2_sam.md",
        f"{INTERVALS}; plain training is tuned where a row says so, else as it comes",
        "python -m benchmarks.optimization.sam_sparsity`, `python -m benchmarks.optimization.sam_generalization` and "
        "`python -m benchmarks.optimization.sam_step",
        (
            Result("time", "time of a step over a plain one, ViT-S", "1.03",
                   "sam_step/table.md > ViT-S > S2-SAM > ratio to plain", "time ratio"),
            Result("garments", "40 % wrong labels, gain over plain training tuned as much, points", "+4.2 ± 1.3",
                   "sam_sparsity/table.md > resnet, 0% sparse, 40% wrong s2sam > gain, end"),
            Result("garments", "40 % wrong labels, both tuned and stopped early, gain, points", "+2.3 ± 3.7",
                   "sam_sparsity/table.md > resnet, 0% sparse, 40% wrong s2sam > gain, stopped"),
            Result("garments", "40 % wrong labels, an MLP, both tuned and stopped early, gain, points", "-5.2 ± 3.8",
                   "sam_sparsity/table.md > mlp, 0% sparse, 40% wrong s2sam > gain, stopped"),
            Result("garments", "right labels, ResNet, gain, points", "+0.7 ± 0.6",
                   "sam_generalization/table.md > resnet, 500 s2sam > gain (95 % interval)"),
            Result("garments", "right labels, ViT, gain, points", "-1.2 ± 1.1",
                   "sam_generalization/table.md > vit, 500 s2sam > gain (95 % interval)"),
        ),
        "On sparse networks it gained nothing with right labels and two points at most with wrong ones, where the "
        "paper reports its largest gains.",
        ("sharpness-aware-minimization", "optimizer", "trainer"),
    ),
    "zo_sam": Card(
        "ZO-SAM: sharpness-aware minimization with an ascent direction from losses alone",
        "Two losses on either side of the weights say which way is up; one gradient trains. After Ji et al., 2026; the "
        "code, and the guided form, which looks along the last gradient, are our own.",
        "from hf_efficient import SAMArguments, ZOSAMTrainer\n\n"
        "ZOSAMTrainer(model, args, train_dataset=data, sam_args=SAMArguments(rho=0.1, guided=True)).train()",
        "zo_sam.md",
        f"{INTERVALS}; plain training has no dial and was not tuned",
        "python -m benchmarks.optimization.sam_generalization` and `python -m benchmarks.optimization.sam_step",
        (
            Result("time", "time of a step over a plain one, ViT-S", "1.6",
                   "sam_step/table.md > ViT-S > ZO-SAM > ratio to plain", "time ratio"),
            Result("garments", "40 % wrong labels, gain over plain training, points", "-0.9 ± 2.5",
                   "sam_generalization/table.md > resnet, 500, 40 % noise zosam > gain (95 % interval)"),
            Result("garments", "40 % wrong labels, guided, gain over plain training, points", "+5.3 ± 2.9",
                   "sam_generalization/table.md > resnet, 500, 40 % noise guided_zosam > gain (95 % interval)"),
            Result("garments", "right labels, ResNet, gain, points", "+1.0 ± 1.3",
                   "sam_generalization/table.md > resnet, 500 zosam > gain (95 % interval)"),
        ),
        "One random direction of millions says little of the gradient: as published it gained beyond chance in one of "
        f"the settings here, by [0.7 ± 0.4]({RESULTS}/sam_generalization/table.md \"{VIT} > gain (95 % interval)\") "
        "points. S2-SAM is cheaper.",
        ("sharpness-aware-minimization", "zeroth-order", "optimizer", "trainer"),
    ),
    "stdo": Card(
        "STDO: a video as a small stream with tiny networks that know it",
        "A video is cut into chunks of like difficulty, tiny super-resolution networks overfit them, and they travel "
        "with a stream of two thirds of the size or less. After G. Li et al., CVPR 2023. The default, a delta to a "
        "general network that ships with the package, is ours.",
        "from hf_efficient import STDOPipeline\n\n"
        'pipe = STDOPipeline.from_pretrained("THIS_FOLDER_OR_HUB_ID")\npipe(output_path="out.mp4")',
        "stdo.md",
        "every byte is counted; one seed",
        "python -m benchmarks.video.rate",
        (
            Result("bikes", "bits at equal luma PSNR against x265, %", "-29.3",
                   "rate/table.md > BD-rate, luma > bikes.mp4 x2 bundle > x265", "BD-rate"),
            Result("bikes", "bits at equal luma PSNR against bicubic enlargement of its own stream, %", "-10.8",
                   "rate/table.md > BD-rate, luma > bikes.mp4 x2 bundle > bicubic", "BD-rate"),
            Result("bikes", "bits at equal luma PSNR against SVT-AV1 at full size, %", "+9.8",
                   "rate/table.md > BD-rate, luma > bikes.mp4 x2 bundle > SVT-AV1", "BD-rate"),
        ),
        "Where the receiver plays AV1 at full size, plain AV1 needs fewer bits. On a film of two minutes a bundle "
        f"gains less: [+32]({RESULTS}/scenes/table.md \"{FILM} SVT-AV1's\") % of bits to SVT-AV1, "
        f"[-10]({RESULTS}/scenes/table.md \"{FILM} x265's\") % to x265.",
        ("video-super-resolution", "diffusers", "overfitting"),
    ),
}  # fmt: skip
_TINY = ("tiny LLaVA", (Result("tiny", "all 144 tokens: % right", "97.4", f"equal_footing/results.json > {ALL}"),))
#: What lies beside shipped weights -> the card it says the same as.
SHIPPED = {"hf_efficient/assets/tiny_vlm/README.md": "model_cards/tiny_vlm.md"}
#: Card of a shipped model -> its name, and figures for its metadata.
MODELS: dict[str, tuple[str, tuple[Result, ...]]] = {
    "model_cards/tiny_vlm.md": _TINY,
    "model_cards/photo_vlm.md": ("LLaVA behind DINOv2", (
        Result("photo", "all 256 tokens: % right", "92.0", f"equal_footing_photo/results.json > {ALL}"),
    )),
    "model_cards/general_upscalers.md": ("general upscaler, x2", (
        Result("bikes", "bits at equal luma PSNR against bicubic enlargement of the same stream, %", "-1.0",
               "rate/table.md > BD-rate, luma > bikes.mp4 x2 general > bicubic", "BD-rate"),
    )),
}  # fmt: skip
