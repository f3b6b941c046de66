"""Small networks with every structure that pruning meets, and random sparse weights for them."""

import torch
import torch.nn.functional as F
from torch import nn

from nnrelief_kernels.layers import CONVS
from nnrelief_kernels.paper.models import LeNet5


class VGG(nn.Module):
    """Convolutions with biases and BatchNorm, max pooling, dropout, two fully connected layers."""

    def __init__(self, widths=(6, "M", 8, 7, "M"), classes=4):
        super().__init__()
        parts, channels = [], 3
        for width in widths:
            if width == "M":
                parts.append(nn.MaxPool2d(2))
            else:
                parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Linear(channels * 4, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, classes))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Block(nn.Module):
    """Two convolutions and a shortcut: zero-padded (option A) or a projection (B) where the shape changes."""

    def __init__(self, inputs, outputs, stride, option):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs
        self.shortcut = None
        if self.more and option == "B":
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        y += x
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(self, option, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(Block(6, 6, 1, option), Block(6, 10, 2, option), Block(10, 10, 1, option))
        self.fc = nn.Linear(10, classes)

    def forward(self, x):
        x = self.blocks(self.bn(self.conv(x)).relu())
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        hidden = 2 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU6())
        self.blocks = nn.Sequential(Inverted(5, 5, 1), Inverted(5, 7, 2), Inverted(7, 7, 1))
        self.head = nn.Sequential(nn.Conv2d(7, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Hardswish())
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        return self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it, through a BatchNorm of its own; a 1 x 1 transition."""

    def __init__(self, layers=3, growth=4, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + i * growth) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(6 + i * growth, growth, 3, padding=1, bias=False) for i in range(layers))
        width = 6 + layers * growth
        self.transition = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 1, bias=False), nn.AvgPool2d(2))
        self.last = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.fc(self.last(self.transition(x)).relu().amax((2, 3)))


class Transformer(nn.Module):
    """Queries, keys and values by layers of their own, LayerNorm before each half, GELU; classifies the mean token."""

    def __init__(self, width=8, heads=2, hidden=12, classes=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(5, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm1(x)
        parts = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.fc(x.mean(1))


class Attention(nn.Module):
    """torch's own transformer layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.layer(x)[:, 0])


class Conv1d(nn.Module):
    """Groups, dilation, circular padding, a leaky activation; reshapes by view."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv1 = nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular")
        self.bn1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 6, 3, dilation=2, groups=2)
        self.conv3 = nn.Conv1d(6, 6, 3, padding="same")
        self.fc1, self.fc2 = nn.Linear(6 * 3, 9), nn.Linear(9, classes)

    def forward(self, x):
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        x = F.elu(self.conv3(F.avg_pool1d(self.conv2(x), 2)))
        return self.fc2(torch.tanh(self.fc1(x.view(x.size(0), -1))))


class Conv3d(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(2, 5, 3, padding=1), nn.BatchNorm3d(5)
        self.conv2, self.bn2 = nn.Conv3d(5, 6, 2, stride=2, bias=False), nn.BatchNorm3d(6)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        x = F.max_pool3d(F.silu(self.bn1(self.conv1(x))), 2)
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3, 4)))


NETWORKS = {
    "LeNet-5": (lambda: LeNet5((1, 16, 16), 4), (1, 16, 16)),
    "VGG": (VGG, (3, 8, 8)),
    "ResNet, option A": (lambda: ResNet("A"), (3, 8, 8)),
    "ResNet, option B": (lambda: ResNet("B"), (3, 8, 8)),
    "MobileNetV2": (MobileNet, (3, 12, 12)),
    "DenseNet": (DenseNet, (3, 8, 8)),
    "transformer": (Transformer, (6, 5)),
    "torch's transformer": (Attention, (6, 8)),
    "1-d": (Conv1d, (4, 10)),
    "3-d": (Conv3d, (2, 8, 8, 8)),
}
"""Name to what makes the network, and the shape of one sample."""


def network(name, seed):
    """In float64 and evaluation mode, with random BatchNorm statistics, scales, shifts and biases, some of them 0."""
    torch.manual_seed(seed)
    model = NETWORKS[name][0]().double().eval()
    with torch.no_grad():
        for module in model.modules():
            for key in ("weight", "bias", "running_mean"):
                value = getattr(module, key, None)
                if isinstance(value, torch.Tensor) and value.ndim == 1:
                    value.normal_().mul_(torch.rand(value.shape) < 0.8)
            if isinstance(getattr(module, "running_var", None), torch.Tensor):
                module.running_var.uniform_(0.5, 2)
    return model


def samples(name, count, seed):
    return torch.randn(count, *NETWORKS[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_masks(model, keep, seed):
    """Of every Linear and convolution: single connections and biases at random, and whole units in and out."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, *CONVS)):
            weight = layer.weight
            units_out = torch.rand(len(weight), 1, generator=generator) < 0.7
            units_in = torch.rand(1, weight.shape[1], generator=generator) < 0.8
            mask = (torch.rand(weight.shape[:2], generator=generator) < keep) & units_out & units_in
            masks[f"{name}.weight"] = mask.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
            if layer.bias is not None:
                masks[f"{name}.bias"] = torch.rand(len(weight), generator=generator) < 0.5
    return masks
