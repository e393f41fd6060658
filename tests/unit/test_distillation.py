"""The loss of distillation and the ensemble of teachers, against the definitions in float64."""

import numpy as np
import pytest
import torch

from bitzoo.errors import LayoutError, UsageError
from bitzoo.training.distillation import Ensemble, Teacher, distillation_loss


def logits(seed, rows=6, classes=9, scale=4.0):
    return scale * np.random.default_rng(seed).standard_normal((rows, classes))


def softmax(values):
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0, 0.5])
class TestLoss:
    def test_is_the_definition(self, temperature):
        """Sum over classes of p (log p - log q), times T squared; no logarithm of a softmax."""
        student, teacher = logits(0), logits(1)
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=1)
        found = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11)
        assert found.shape == (6,)

    def test_is_torchs_divergence(self, temperature):
        """The order of the arguments: kl_div's input is the student, its target the teacher."""
        student, teacher = torch.tensor(logits(2)), torch.tensor(logits(3))
        expected = temperature**2 * torch.nn.functional.kl_div(
            torch.log_softmax(student / temperature, 1),
            torch.softmax(teacher / temperature, 1),
            reduction="batchmean",
        )
        found = distillation_loss(student, teacher, temperature).mean()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    def test_gradient(self, temperature):
        """d/ds of T^2 KL is T (q - p): about the same size at every temperature."""
        student, teacher = torch.tensor(logits(4), requires_grad=True), torch.tensor(logits(5))
        distillation_loss(student, teacher, temperature).sum().backward()
        q = softmax(student.detach().numpy() / temperature)
        p = softmax(teacher.numpy() / temperature)
        np.testing.assert_allclose(student.grad.numpy(), temperature * (q - p), atol=1e-12)

    def test_is_zero_only_for_the_same_function(self, temperature):
        """A constant added to the logits of an image changes nothing."""
        values = torch.tensor(logits(6))
        same = distillation_loss(values + 3.0, values, temperature)
        torch.testing.assert_close(same, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (distillation_loss(torch.tensor(logits(7)), values, temperature) > 0.01).all()


def test_large_logits_are_finite():
    """A teacher that is sure: probabilities that are 0 in float32."""
    teacher = torch.tensor([[300.0, 0.0, -300.0]])
    found = distillation_loss(torch.zeros(1, 3), teacher, 1.0)
    torch.testing.assert_close(found, torch.log(torch.tensor([3.0])))


class TestEnsemble:
    def test_one_teacher_is_itself(self):
        values = torch.tensor(logits(0))
        found = Ensemble([Teacher(lambda images: values)])(torch.zeros(6, 3, 2, 2))
        assert torch.equal(found, values)
        assert found.dtype == torch.float64

    def test_logits_are_averaged_class_by_class(self):
        """Not probabilities; and a teacher's outputs may be in another order."""
        first, second, third = (torch.tensor(logits(seed)) for seed in range(3))
        order = [3, 0, 8, 1, 2, 7, 6, 5, 4]
        moved = torch.empty_like(second)
        moved[:, order] = second  # class k is output order[k]
        ensemble = Ensemble(
            [
                Teacher(lambda images: first),
                Teacher(lambda images: moved, order),
                Teacher(lambda images: torch.cat([third, third], 1), range(9)),
            ]
        )
        expected = (first + second + third) / 3
        torch.testing.assert_close(ensemble(torch.zeros(6, 3, 2, 2)), expected)

    def test_gets_the_images_and_no_gradient(self):
        weight, seen = torch.ones(3, 5, requires_grad=True), []

        def forward(images):
            seen.append(images)
            return images.mean((2, 3)) @ weight

        images = torch.rand(2, 3, 4, 4)
        found = Ensemble([Teacher(forward), Teacher(forward)])(images)
        assert all(each is images for each in seen)
        assert len(seen) == 2
        assert not found.requires_grad

    def test_outputs_of_inference_mode_can_be_used_in_a_loss(self):
        with torch.inference_mode():
            values = torch.rand(2, 5)
        found = Ensemble([Teacher(lambda images: values)])(torch.zeros(2, 3, 1, 1))
        student = torch.rand(2, 5, requires_grad=True)
        distillation_loss(student, found, 2.0).sum().backward()
        assert student.grad is not None

    def test_none(self):
        with pytest.raises(UsageError, match="needs a teacher, found none"):
            Ensemble([])

    def test_other_numbers_of_classes(self):
        teachers = [Teacher(lambda images, k=k: torch.zeros(2, k)) for k in (4, 5)]
        with pytest.raises(LayoutError, match=r"\(2, 4\) and \(2, 5\)"):
            Ensemble(teachers)(torch.zeros(2, 3, 1, 1))
