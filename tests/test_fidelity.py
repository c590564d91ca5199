"""Fidelity measures against cases that can be worked out by hand."""

import pytest
import torch

from bitquant.fidelity import fidelity, mean_cosine, neighbour_agreement, outputs


def test_equal_embeddings_agree_wholly():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert fidelity({"embeddings": x}, {"embeddings": 3 * x}) == pytest.approx({"cosine": 1, "top1": 1, "top10": 1})


def test_cosine_by_hand():
    assert mean_cosine(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[1.0, 0], [3, 0]])) == pytest.approx(0.5)


def test_neighbours_by_hand():
    angles = {"teacher": [0, 10, 90, 100], "student": [0, 10, 100, 20]}
    teacher, student = (
        torch.tensor([[torch.cos(t), torch.sin(t)] for t in torch.deg2rad(torch.tensor(a, dtype=torch.float))])
        for a in angles.values()
    )
    # nearest by the teacher 1, 0, 3, 2; by the student 1, 0 or 3 (the tie at 10 degrees), 3, 1
    assert neighbour_agreement(teacher, student, 1) in (0.5, 0.75)
    assert neighbour_agreement(teacher, student, 3) == 1


def test_more_neighbours_than_sentences():
    x = torch.eye(3)
    assert neighbour_agreement(x, x, 10) == 1


class Encoder(torch.nn.Module):
    def forward(self, values, attention_mask=None):
        return (values.unsqueeze(-1).repeat(1, 1, 2),)


def test_pooling_leaves_padding_out_and_keeps_the_mode():
    model = Encoder().train()
    batch = {"values": torch.tensor([[1.0, 3, 100], [2, 2, 2]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert outputs(model, [batch, batch])["embeddings"].tolist() == [[2, 2]] * 4
    assert model.training


def test_a_mask_of_samples_is_taken_at_the_frames_made_of_them():
    class Halves(torch.nn.Module):
        def forward(self, values, attention_mask=None):
            return (values[:, ::2].unsqueeze(-1),)

    batch = {"values": torch.tensor([[1.0, 0, 3, 0, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    assert outputs(Halves(), [batch])["embeddings"].tolist() == [[2]]


def test_classes_are_compared_where_there_are_logits():
    class Head(torch.nn.Module):
        def __init__(self, *classes):
            super().__init__()
            self.classes = torch.nn.functional.one_hot(torch.tensor(classes)).float()

        def forward(self, ids, attention_mask=None):
            return {"logits": self.classes[ids]}

    batch = {"ids": torch.tensor([[0, 1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    teacher, student = (outputs(Head(*classes), [batch] * 3) for classes in ((0, 1, 2, 0), (0, 2, 2, 1)))
    assert teacher["classes"].tolist() == [0, 1, 2] * 3
    assert fidelity(teacher, student)["argmax"] == pytest.approx(2 / 3)
