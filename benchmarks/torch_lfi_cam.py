"""LFI-CAM ResNet in PyTorch, channels last, to be timed beside ours: the same operations."""

import torch
from torch import nn
from torch.nn import functional


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride)
        self.second = conv_norm(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = conv_norm(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x):
        """[N, C, H, W] -> [N, C', h, w]."""
        return functional.relu(
            self.second(functional.relu(self.first(x))) + self.shortcut(x), inplace=True
        )


class LfiCamResNet(nn.Module):
    """A residual network with the feature importance network on its last maps."""

    def __init__(self, depth: int = 20, classes: int = 10, width: int = 16):
        super().__init__()
        blocks, inputs = [], width
        for stage in range(3):
            for i in range((depth - 2) // 6):
                outputs, stride = width << stage, 2 if stage and not i else 1
                blocks.append(Block(inputs, outputs, stride))
                inputs = outputs
        self.stem = nn.Sequential(conv_norm(3, width), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(*blocks)
        pair = [conv_norm(inputs, inputs), conv_norm(inputs, inputs), nn.ReLU(inplace=True)]
        again = [conv_norm(inputs, inputs), conv_norm(inputs, inputs), nn.ReLU(inplace=True)]
        self.fin = nn.Sequential(*pair, *again)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        """Pictures [N, 3, H, W] -> logits [N, classes]."""
        f = self.stages(self.stem(x))
        grey = x.mean(1, keepdim=True)
        grey = functional.interpolate(grey, f.shape[2:], mode="bilinear", align_corners=False)
        scaled = unit(f, constant=torch.ones(()))
        scaled = torch.where(f == 0, 0.0, scaled)
        w = self.fin(scaled * grey).mean((2, 3)).softmax(1)
        mixed = functional.relu(torch.einsum("nchw,nc->nhw", f, w))[:, None]
        return self.head(((1 + unit(mixed, constant=mixed)) * f).mean((2, 3)))


def unit(x, constant):
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    varies = high > low
    return torch.where(varies, (x - low) / torch.where(varies, high - low, 1.0), constant)


def step(batch: int, device: str):
    """A training step on random pictures of CIFAR's size, and the number of parameters."""
    model = LfiCamResNet().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())  # waits for the device

    return run, sum(p.numel() for p in model.parameters())
