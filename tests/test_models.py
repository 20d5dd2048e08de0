"""Whole models, hand-written and from libraries, traced and untraced."""

from __future__ import annotations

import copy
import importlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from side_by_side import SideBySide, assert_nothing_differs, image, scalar_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradmagic.tracing import trace


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


class InvertedResidual(nn.Module):
    """MobileNet's block with squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(True))
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        squeezed = nn.Conv2d(wide, 4, 1), nn.ReLU(), nn.Conv2d(4, wide, 1), nn.Hardsigmoid()
        self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), *squeezed)
        self.project = nn.Conv2d(wide, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(self.expand(x))
        return x + self.project(h * self.excite(h))


class UNet(nn.Module):
    """Skips across a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)])
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(16, 4, 2, 2)])
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            x = F.silu(conv(x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for conv in self.up:
            x = torch.cat([conv(x), skips.pop()], 1)
        return self.out(x)


class DenseBlock(nn.Module):
    """Every layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(F.leaky_relu(layer(torch.cat(features, 1)), 0.1))
        return torch.cat(features, 1).mean((2, 3))


class Attention(nn.Module):
    """Multi-head self-attention by hand, causal or not."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)
        self.causal = causal
        self.register_buffer("mask", torch.ones(32, 32).tril())

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(width, 2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width / self.heads)
        if self.causal:
            scores = scores.masked_fill(self.mask[:t, :t] == 0, float("-inf"))
        return self.out((self.drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """A transformer block, normalised first."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, 2, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    """Patches, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks, self.head = nn.Sequential(Block(8, False), Block(8, False)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        return self.head(self.blocks(x)[:, 0])


class GPT(nn.Module):
    """Tied embedding and head."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(11, 8), nn.Embedding(16, 8)
        self.blocks, self.norm = nn.ModuleList([Block(8, True) for _ in range(2)]), nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x))[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))


class VAE(nn.Module):
    """Reparametrised normal."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 8), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        mean, logvar = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        kl = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum()
        return F.binary_cross_entropy_with_logits(self.decoder(z), x.sigmoid(), reduction="sum") + kl


class GNN(nn.Module):
    """Messages along edges, summed at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(6, 6), nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        source, target = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
        for _ in range(3):
            received = torch.zeros_like(x).index_add(0, target, self.message(x)[source].relu())
            x = self.update(received, x)
        return x.amax(0)


class Seq2Seq(nn.Module):
    """An LSTM reads, another one writes step by step, with attention to what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.reader, self.writer = nn.Embedding(9, 6), nn.LSTM(6, 8, 2, dropout=0.1), nn.LSTMCell(14, 8)
        self.out = nn.Linear(8, 9)

    def forward(self, ids: Tensor) -> Tensor:
        read, (h, c) = self.reader(self.embed(ids))
        h, c, loss = h[-1], c[-1], 0.0
        for step in range(3):
            weights = torch.einsum("tnh,nh->tn", read, h).softmax(0)
            context = (weights.unsqueeze(-1) * read).sum(0)
            h, c = self.writer(torch.cat([context, self.embed(ids[step])], 1), (h, c))
            loss = loss + F.nll_loss(self.out(h).log_softmax(1), ids[step + 1])
        return loss


class NeuralODE(nn.Module):
    """Runge-Kutta steps through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            k1 = self.net(x)
            k2 = self.net(x + 0.05 * k1)
            x = x + 0.1 * (k1 + k2) / 2
        return x


class Diffusion(nn.Module):
    """Predicts the noise that was added."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.net = nn.Embedding(10, 12), nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 12))
        self.register_buffer("kept", torch.linspace(0.99, 0.05, 10))

    def forward(self, x: Tensor) -> Tensor:
        step, noise = torch.randint(10, (len(x),)), torch.randn_like(x)
        kept = self.kept[step].unsqueeze(1)
        return F.mse_loss(self.net(kept.sqrt() * x + (1 - kept).sqrt() * noise + self.time(step)), noise)


class Experts(nn.Module):
    """A mixture of experts: the two best of a gate, gathered by mask and index_put."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 3), nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            row, place = torch.where(chosen == index)
            out[row] += weights[row, place, None] * expert(x[row])
        return out


def _image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def _ids(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(9, shape)


HAND_WRITTEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "resnet": (lambda: nn.Sequential(Residual(3, 4), Residual(4, 6, 2), nn.AdaptiveAvgPool2d(1)), _image),
    "vgg": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(True)),
            *(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3)),
        ),
        _image,
    ),
    "mobilenet": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), InvertedResidual(4), InvertedResidual(4)), _image),
    "unet": (UNet, _image),
    "densenet": (DenseBlock, _image),
    "vit": (ViT, _image),
    "gpt": (GPT, _ids(2, 6)),
    "vae": (VAE, lambda: torch.randn(3, 12)),
    "gnn": (GNN, lambda: torch.randn(4, 6)),
    "seq2seq": (Seq2Seq, _ids(5, 2)),
    "neural ode": (NeuralODE, lambda: torch.randn(3, 4)),
    "diffusion": (Diffusion, lambda: torch.randn(3, 12)),
    "experts": (Experts, lambda: torch.randn(5, 6)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda: torch.randn(3, 2, 8),
    ),
    "weight norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2)),
        ),
        lambda: torch.randn(3, 4),
    ),
}
FEW = ("resnet", "gpt", "experts")
HAND = [pytest.param(*made, id=name) for name, made in HAND_WRITTEN.items()]
SOME = [
    pytest.param(*made, id=name, marks=() if name in FEW else pytest.mark.slow) for name, made in HAND_WRITTEN.items()
]

Call = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, given: Any) -> Any:
    """Call a model with what it is given: a dict is keywords."""
    return model(**given) if isinstance(given, dict) else model(given)


def forward(make: Callable[[], nn.Module], given: Callable[[], Any], training: bool, variables: dict[str, Any]) -> Any:
    """Construct a model and call it; gives the tensors it returns."""
    model = variables["model"] = make().train(training)
    variables["given"] = given()
    out = variables["out"] = call(model, variables["given"])
    return [part for part in pytree.tree_leaves(out) if isinstance(part, Tensor)]


def compare_forward(make: Callable[[], nn.Module], given: Callable[[], Any], training: bool) -> int:
    """Construct, forward and backward, traced and not; gives the number of gradients seen."""
    return assert_nothing_differs(SideBySide(lambda: partial(forward, make, given, training, variables={}))).nodes


def train(make: Callable[[], nn.Module], given: Callable[[], Any], variables: dict[str, Any]) -> None:
    """Two steps of an optimizer."""
    model = variables["model"] = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss = scalar_of(call(model, given()))
        loss.backward()
        optimizer.step()
    variables["state"] = list(optimizer.state.values())


def compare_training(make: Callable[[], nn.Module], given: Callable[[], Any]) -> None:
    """Backward and step inside the traced block: weights and the optimizer's state are those of the untraced run."""
    found = assert_nothing_differs(SideBySide(lambda: partial(train, make, given, variables={}), runs_passes=True))
    assert not found.raises


def compare_guest(make: Callable[[], nn.Module], given: Callable[[], Any]) -> None:
    """The forward cell is traced, backward and step come in a later cell that is not: the same weights."""
    weights = []
    for is_traced in (False, True):
        torch.manual_seed(3)
        model = make().train()
        variables: dict[str, Any] = {"model": model, "given": given()}
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            if is_traced:
                with trace(namespace=variables) as run:
                    loss = scalar_of(call(model, variables["given"]))
                    run.offer(loss)
                assert run.report is not None
                assert len(run.report.passes) == 1
            else:
                loss = scalar_of(call(model, variables["given"]))
            loss.backward()
            optimizer.step()
        weights.append(copy.deepcopy(model.state_dict()))
    for name, weight in weights[0].items():
        assert image(weights[1][name]) == image(weight), name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("make", "given"), HAND)
def test_a_hand_written_model_gives_plain_pytorchs_results(
    make: Callable[[], nn.Module], given: Callable[[], Any], training: bool
) -> None:
    """Outputs, buffers, random stream, leaf gradients and the gradient of every node, bit for bit."""
    assert compare_forward(make, given, training) > 10


@pytest.mark.parametrize(("make", "given"), SOME)
def test_weights_after_training_steps_in_the_cell_are_those_of_the_untraced_run(
    make: Callable[[], nn.Module], given: Callable[[], Any]
) -> None:
    """Backward and step stand in the traced cell itself."""
    compare_training(make, given)


@pytest.mark.parametrize(("make", "given"), SOME)
def test_weights_after_a_later_cells_backward_and_step_are_those_of_the_untraced_run(
    make: Callable[[], nn.Module], given: Callable[[], Any]
) -> None:
    """What gradtrace's own backward left in `.grad` is a guest, and goes."""
    compare_guest(make, given)


TORCHVISION = (
    *("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "densenet121", "googlenet", "lraspp_mobilenet_v3_large"),
)
TIMM = (
    *(
        "test_byobnet",
        "test_coatnet",
        "test_convnext",
        "test_efficientnet",
        "test_mambaout",
        "test_maxvit",
        "test_nfnet",
    ),
    *("test_resnet", "test_vit", "test_vit_relpos", "resnet10t", "lcnet_035", "mobilenetv3_small_050", "tinynet_e"),
    *("ghostnet_100", "edgenext_xx_small", "mobilevit_xxs", "xcit_nano_12_p16_224", "pit_ti_224", "repvgg_a0"),
)
TRANSFORMERS = (
    *("albert", "bert", "bloom", "distilbert", "electra", "ernie", "falcon", "gemma", "gpt2", "gpt_neo", "gpt_neox"),
    *("llama", "mamba", "mistral", "mixtral", "mpnet", "opt", "phi", "qwen2", "qwen3", "roberta", "t5", "bart", "olmo"),
)
SMALL = {
    **{"hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embedding_size": 16, "word_embed_proj_dim": 16},
    **{"num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2},
    **{"num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_kv": 8, "state_size": 4},
    **{"intermediate_size": 32, "ffn_dim": 32, "hidden_dim": 32, "d_ff": 32, "n_inner": 32, "encoder_ffn_dim": 32},
    **{"decoder_ffn_dim": 32, "vocab_size": 40, "max_position_embeddings": 64, "n_positions": 64, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 3, "attention_types": [[["global", "local"], 1]]},
}
"""Whatever a configuration calls its sizes."""


def library(name: str) -> Any:
    """A library, without what it says while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name)
        return importlib.import_module({"torchvision": "torchvision.models"}.get(name, name))


def _of_torchvision(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    models = library("torchvision")
    options = {"weights_backbone": None} if "lraspp" in name else {}
    return lambda: models.get_model(name, weights=None, num_classes=3, **options), lambda: torch.randn(2, 3, 64, 64)


def _of_timm(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    timm = library("timm")
    size = timm.create_model(name).default_cfg["input_size"][-1]
    return lambda: timm.create_model(name, num_classes=3), lambda: torch.randn(2, 3, size, size)


def _of_transformers(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    transformers = library("transformers")
    usual = transformers.AutoConfig.for_model(name)
    computed = {key for key in SMALL if isinstance(getattr(type(usual), key, None), property)}
    sizes = {key: value for key, value in SMALL.items() if hasattr(usual, key) and key not in computed}
    config = transformers.AutoConfig.for_model(name, **sizes)

    def given() -> dict[str, Tensor]:
        ids = torch.randint(3, 40, (2, 7))
        return {"input_ids": ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {"input_ids": ids}

    return lambda: transformers.AutoModel.from_config(config), given


LIBRARY = [
    pytest.param(source, name, id=f"{source.__name__[4:]}-{name}")
    for source, names in ((_of_torchvision, TORCHVISION), (_of_timm, TIMM), (_of_transformers, TRANSFORMERS))
    for name in names
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # what a library says is the same in each run; some says something to everybody
@pytest.mark.parametrize(("source", "name"), LIBRARY)
def test_a_librarys_model_gives_plain_pytorchs_results(source: Callable[[str], Any], name: str) -> None:
    """With random weights: in train and eval mode, in training steps in the cell, and in those of a later cell."""
    make, given = source(name)
    for training in (True, False):
        assert compare_forward(make, given, training) > 10
    compare_training(make, given)
    compare_guest(make, given)
