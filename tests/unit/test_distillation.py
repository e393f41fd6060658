"""The loss of distillation and the ensemble of teachers, against the definitions in float64."""

import numpy as np
import pytest
import torch
from training import CLASSES, CROP, RESIZE, make_data, make_model, make_recipe, sha256

from bitzoo.data.loader import materialize
from bitzoo.data.sampler import BatchPlan
from bitzoo.errors import LayoutError, UsageError
from bitzoo.training.distillation import Ensemble, Teacher, distillation_loss
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig


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
        teachers = [
            Teacher(lambda images: torch.zeros(2, 4)),
            Teacher(lambda images: torch.zeros(2, 5)),
        ]
        with pytest.raises(LayoutError, match=r"\(2, 4\) and \(2, 5\)"):
            Ensemble(teachers)(torch.zeros(2, 3, 1, 1))


def distill_recipe(**changes):
    given = {"loss": "distillation", "loss_options": {"temperature": 2.0}, "mixup": 1.0}
    return make_recipe(**{**given, **changes})


class TestInTheLoop:
    @pytest.mark.parametrize("micro_batch", [8, 3])
    def test_teacher_and_student_see_the_same_pixels(self, micro_batch):
        """Every micro-batch of every step: the same crops, flips and mixtures, as planned."""
        (pixels, labels), student = make_data(), make_model()
        network, by_student, by_teacher = make_model(seed=9).eval(), [], []

        def teacher(images):
            by_teacher.append(images.clone())
            return network(images)

        recipe = distill_recipe(steps=3)
        handle = student.stem.register_forward_pre_hook(
            lambda module, inputs: by_student.append(inputs[0].clone())
        )
        # a format that is given, so that no passes are made to choose one
        config = TrainingConfig(seed=5, micro_batch=micro_batch, channels_last=True)
        train(student, recipe, pixels, labels, config, teacher=teacher)
        handle.remove()
        assert len(by_teacher) == len(by_student) == 3 * -(-8 // micro_batch)
        for one, other in zip(by_teacher, by_student, strict=True):
            assert torch.equal(one, other)
        plan = BatchPlan(40, 8, RESIZE, CROP, True, 1.0, 5)
        for step in range(3):
            planned, _ = materialize(plan.batch(step), slice(None), pixels, labels, CLASSES, CROP)
            rows = -(-8 // micro_batch)
            assert torch.equal(torch.cat(by_teacher[step * rows : (step + 1) * rows]), planned)
        assert len({round(plan.batch(step).lam, 6) for step in range(3)}) == 3  # it was mixed

    def test_loss_is_that_of_the_outputs_and_labels_do_not_matter(self):
        """The first loss: T^2 KL to the even distribution of a zero head, by hand."""
        (pixels, labels), network = make_data(), make_model(seed=9).eval()
        kernel = network.get_classifier().weight
        torch.nn.init.normal_(kernel, generator=torch.Generator().manual_seed(0))
        recipe = distill_recipe(steps=2, mixup=0.5)

        def run(given):
            losses, student = [], make_model()
            train(
                student, recipe, pixels, given, TrainingConfig(seed=5, micro_batch=8),
                teacher=lambda images: network(images).detach(),
                on_step=lambda metrics: losses.append(metrics["loss"]),
            )  # fmt: skip
            return losses, sha256(student)

        found = [run(labels), run(np.zeros_like(labels))]
        plan = BatchPlan(40, 8, RESIZE, CROP, True, 0.5, 5)
        images, _ = materialize(plan.batch(0), slice(None), pixels, labels, CLASSES, CROP)
        p = softmax(network(images).detach().double().numpy() / 2)
        expected = 4 * (p * (np.log(p) + np.log(CLASSES))).sum(axis=1).mean()
        assert found[0][0][0] == pytest.approx(expected, rel=1e-5)
        assert found[0] == found[1]

    def test_the_teacher_stays_as_it_is(self):
        (pixels, labels), network = make_data(), make_model(seed=9).eval()
        before = sha256(network)
        ensemble = Ensemble([Teacher(network)])
        student = make_model()
        train(
            student, distill_recipe(), pixels, labels, TrainingConfig(micro_batch=8),
            teacher=ensemble,
        )  # fmt: skip
        assert sha256(network) == before
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_loss_and_teacher_belong_together(self):
        pixels, labels = make_data()
        with pytest.raises(UsageError, match="compares with a teacher, found none with the loss"):
            train(make_model(), distill_recipe(), pixels, labels)
        with pytest.raises(UsageError, match="found one with the loss softmax_cross_entropy"):
            train(make_model(), make_recipe(), pixels, labels, teacher=make_model())

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "expected temperature above 0, found no temperature"),
            ({"temperature": 0}, r"expected of distillation only temperature above 0, found "),
            ({"temperature": True}, "found {'temperature': True}"),
            ({"temperature": float("nan")}, "found {'temperature': nan}"),
            ({"temperature": 1, "class_weights": "balanced"}, "found {'class_weights': 'balanced'"),
        ],
    )
    def test_options_of_the_loss(self, options, said):
        pixels, labels = make_data()
        recipe = distill_recipe(loss_options=options)
        with pytest.raises(UsageError, match=said):
            train(make_model(), recipe, pixels, labels, teacher=make_model())
