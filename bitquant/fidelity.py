"""How close a student's sentence embeddings are to its teacher's."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def embed(model, batches):
    """Mean-pooled embeddings of every sequence, padding left out.

    The bare encoder is run when the model has a task head on it.

    Args:
        model (nn.Module): put into eval mode for the call and back.
        batches (Iterable[dict]): keyword arguments of the model, tensors (B, T), ``attention_mask`` optional.

    Returns:
        Tensor: float32 (N, D), one row a sequence.
    """
    encoder = getattr(model, "base_model", model)
    training = model.training
    model.eval()
    try:
        return torch.cat([_pool(encoder(**batch), batch.get("attention_mask")) for batch in batches])
    finally:
        model.train(training)


def _pool(output, mask):
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    if hidden.dim() != 3:
        return hidden.flatten(1).float()
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(1).float()
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return ((hidden * weights).sum(1) / weights.sum(1).clamp(min=1)).float()


def mean_cosine(teacher, student):
    """Mean cosine similarity of matching rows of two (N, D) tensors: a float in [-1, 1]."""
    return F.cosine_similarity(teacher, student, dim=1).mean().item()


def neighbour_agreement(teacher, student, k):
    """Share of each sentence's k nearest other sentences that both embeddings agree on.

    Nearest by cosine among the same N sentences, order within the k ignored. By chance it is k / (N - 1).

    Args:
        teacher (Tensor): (N, D).
        student (Tensor): (N, E), the same sentences in the same order.
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
    """Mean cosine, top-1 and top-10 neighbour agreement of two (N, D) embeddings, as a dict of floats."""
    return {
        "cosine": mean_cosine(teacher, student),
        "top1": neighbour_agreement(teacher, student, 1),
        "top10": neighbour_agreement(teacher, student, 10),
    }
