"""How close a student's outputs are to its teacher's: embeddings, and the classes it would choose."""

import torch
import torch.nn.functional as F

from bitquant.distillation.losses import of_classes, problem_type_of
from bitquant.inputs import first_tensor, followed, named_tensors
from bitquant.masks import mean_pool


@torch.no_grad()
def outputs(model, batches):
    """Mean-pooled embeddings of every sample and, where the model gives ``logits``, the class at every position.

    The embeddings are those of the bare encoder when the model has a task head on it. Padding is left out.

    Args:
        model (nn.Module): put into eval mode for the call and back.
        batches (Iterable[dict]): keyword arguments of the model, ``attention_mask`` (B, T) optional.

    Returns:
        dict[str, Tensor]: ``embeddings`` float32 (N, D); ``classes`` int64 (M,) of all positions in a row, where the
        logits are of classes.
    """
    encoder = getattr(model, "base_model", model)
    training, seen = model.training, {}
    hook = encoder.register_forward_hook(lambda module, inputs, output: seen.update(hidden=output))
    model.eval()
    rows = {"embeddings": [], "classes": []}
    try:
        for batch in batches:
            with followed(batch) as padding:
                logits = named_tensors(model(**batch)).get("logits")
            hidden = first_tensor(seen["hidden"])
            rows["embeddings"].append(_pool(hidden, padding and padding.valid(hidden)))
            if logits is not None and of_classes(logits, problem_type_of(model)):
                rows["classes"].append(_choose(logits, padding and padding.valid(logits)))
    finally:
        hook.remove()
        model.train(training)
    return {name: torch.cat(parts) for name, parts in rows.items() if parts}


def _pool(hidden, valid):
    if hidden.dim() != 3:  # one vector a sample, or a feature map (B, C, H, W)
        return (hidden.flatten(2).mean(2) if hidden.dim() > 3 else hidden.flatten(1)).float()
    return mean_pool(hidden, valid).float()


def _choose(logits, valid):
    classes = logits.argmax(-1)
    return classes.flatten() if valid is None else classes[valid.any(-1).expand(classes.shape)]


def mean_cosine(teacher, student):
    """Mean cosine similarity of matching rows of two (N, D) tensors: a float in [-1, 1]."""
    return F.cosine_similarity(teacher, student, dim=1).mean().item()


def neighbour_agreement(teacher, student, k):
    """Share of each sample's k nearest other samples that both embeddings agree on.

    Nearest by cosine among the same N samples, order within the k ignored. By chance it is k / (N - 1).

    Args:
        teacher (Tensor): (N, D).
        student (Tensor): (N, E), the same samples in the same order.
        k (int): neighbours; at most N - 1 are used.

    Returns:
        float: in [0, 1]; 1 means the same neighbours everywhere.
    """
    k = min(k, len(teacher) - 1)
    ours, theirs = _nearest(student, k), _nearest(teacher, k)
    return (ours.unsqueeze(2) == theirs.unsqueeze(1)).any(2).float().mean().item()


def _nearest(embeddings, k):
    unit = F.normalize(embeddings, dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(k, dim=1).indices


def fidelity(teacher, student):
    """Compares two results of ``outputs`` over the same samples.

    Returns:
        dict[str, float]: mean ``cosine``, ``top1`` and ``top10`` neighbour agreement, and with logits ``argmax``, the
        share of positions where both choose the same class.
    """
    ours, theirs = student["embeddings"], teacher["embeddings"]
    result = {
        "cosine": mean_cosine(theirs, ours),
        "top1": neighbour_agreement(theirs, ours, 1),
        "top10": neighbour_agreement(theirs, ours, 10),
    }
    if "classes" in teacher:
        result["argmax"] = (teacher["classes"] == student["classes"]).float().mean().item()
    return result
