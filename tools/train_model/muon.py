"""Muon: momentum whose update is orthogonalised by five Newton-Schulz steps, for matrices."""
import torch


class Muon:
    """Matrices of equal shape are orthogonalised together.

    The update is X = a X + (b A + c A A) X with A = X X^T, five times, in bfloat16; (a, b, c) as in
    the method's reference implementation.
    """

    MOMENTUM = .95
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    STEPS = 5

    def __init__(self, parameters, learning_rate, decay=.01):
        self.learning_rate, self.decay = learning_rate, decay
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.momentum = {shape: torch.zeros(len(group), *shape)
                         for shape, group in self.groups.items()}

    def orthogonalise(self, x):
        """x: [matrices, rows, columns], rows <= columns."""
        a, b, c = self.COEFFICIENTS
        x = x.bfloat16()
        x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
        for _ in range(self.STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return x

    @torch.no_grad()
    def step(self, multiplier):
        """One update with the learning rate times `multiplier`."""
        rate = self.learning_rate * multiplier
        for (rows, columns), group in self.groups.items():
            gradients = torch.stack([parameter.grad for parameter in group])
            momentum = self.momentum[rows, columns].mul_(self.MOMENTUM).add_(gradients)
            update = gradients + self.MOMENTUM * momentum
            if rows > columns:
                update = self.orthogonalise(update.mT.contiguous()).mT.float()
            else:
                update = self.orthogonalise(update).float()
            scale = max(1, rows / columns) ** .5
            for parameter, x in zip(group, update):
                parameter.mul_(1 - rate * self.decay).sub_(x, alpha=rate * scale)

    def state_dict(self):
        return {"momentum": self.momentum}

    def load_state_dict(self, state):
        self.momentum = state["momentum"]
