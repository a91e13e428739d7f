"""PatchGAN: sizes, hinge by hand, and that one backward pass keeps the two players' gradients apart."""

import pytest
import torch
from torch import nn

from semhitok.discriminator import AdversarialLoss, PatchDiscriminator, adaptive_weight, hinge_loss


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])
    # true: 0 and 0.5, mean 0.25; drawn: 0 and 2, mean 1
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))


def test_one_logit_per_patch_and_pictures_are_judged_alone():
    net = PatchDiscriminator(channels=8)
    picture = torch.zeros(2, 3, 64, 64, requires_grad=True)
    logits = net(picture)
    assert logits.shape == (2, 1, 6, 6)
    logits[0, 0, 3, 3].backward()
    assert picture.grad[0].any() and not picture.grad[1].any()


def gradients(loss: torch.Tensor, parameters) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)


def parts():
    torch.manual_seed(0)
    decoder = nn.Conv2d(3, 3, 3, padding=1)
    adversarial = AdversarialLoss(weight=0.5, channels=8)
    adversarial.active = True
    target = torch.rand(2, 3, 32, 32)
    predicted = decoder(torch.rand(2, 3, 32, 32))
    reconstruction = (predicted - target).abs().mean()
    return decoder, adversarial, target, predicted, reconstruction


def test_each_player_gets_its_own_gradient_alone():
    decoder, adversarial, target, predicted, reconstruction = parts()
    losses = adversarial(predicted, target, reconstruction, decoder.weight)
    discriminator = list(adversarial.discriminator.parameters())
    assert all(g is None for g in gradients(losses["adversarial"], discriminator))
    assert all(g is None for g in gradients(losses["discriminator"], decoder.parameters()))
    by_hand = -0.5 * adversarial.discriminator(predicted).mean()
    for ours, expected in zip(
        gradients(losses["adversarial"], decoder.parameters()), gradients(by_hand, decoder.parameters()), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_before_the_start_nothing_moves_but_every_parameter_has_a_gradient():
    decoder, adversarial, target, predicted, reconstruction = parts()
    adversarial.active = False
    losses = adversarial(predicted, target, reconstruction, decoder.weight)
    assert losses["adversarial"].item() == 0
    losses["discriminator"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in adversarial.discriminator.parameters())


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    strong, weak = (10 * weight).sum(), (2 * weight).sum()
    assert adaptive_weight(strong, weak, weight).item() == pytest.approx(5.0, rel=1e-3)
    assert adaptive_weight(strong, (0 * weight).sum(), weight).item() == pytest.approx(1e4)
