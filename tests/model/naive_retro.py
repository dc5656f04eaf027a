"""RETRO written a second time, slowly, from the paper alone: the oracle of the tests in this folder.

Nothing here is batched, padded, shifted or masked. Sequences, chunks, neighbors, tokens and heads are loops; a vector
is one tensor; a missing neighbor or a padding token is simply not in the list. Indices u, i, i', p count from 1 as in
Borgeaud et al. 2022. Only the names of the weights come from retro_lab.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retro_lab.model.config import ModelConfig, SizeConfig

Vectors = list[Tensor]


class NaiveRetro:
    """The forward pass of one sequence, given the weights of a `RetroModel`."""

    def __init__(self, weights: dict[str, Tensor], size: SizeConfig, model: ModelConfig) -> None:
        """Remember the weights by name."""
        self.weights, self.size, self.model = weights, size, model

    def hidden_states(
        self,
        tokens: Sequence[int],
        retrieved: Sequence[Sequence[Sequence[int]]] | None,
        documents: Sequence[int] | None = None,
    ) -> Vectors:
        """Algorithm 1 for one sequence.

        Args:
            tokens: x_1 ... x_n.
            retrieved: retrieved[u - 1] holds the neighbors of chunk u, each a list of its real tokens; empty
                neighbors count as absent. None turns retrieval off.
            documents: the document of each token, if documents know nothing of each other.
        """
        self.documents = documents or [0] * len(tokens)
        size, m = self.size, self.model.chunk_length
        chunks = len(tokens) // m
        states = [self.weights["embedding.weight"][token] for token in tokens]
        encoded: list[list[Vectors]] | None = None
        for p in range(1, size.layers + 1):
            layer = f"layers.{p - 1}"
            states = self.residual(f"{layer}.attention", states, self.relative_attention)
            if retrieved is not None and size.cca_layers and p == min(size.cca_layers):
                encoded = [
                    [self.encode(neighbor, states[(u - 1) * m : u * m]) for neighbor in retrieved[u - 1] if neighbor]
                    for u in range(1, chunks + 1)
                ]
            if encoded is not None and p in size.cca_layers:
                states = self.residual(
                    f"{layer}.cca",
                    states,
                    lambda name, inputs, e=encoded: self.chunked_cross_attention(name, inputs, e),
                )
            states = self.residual(f"{layer}.feed_forward", states, self.feed_forward)
        return [self.norm("norm", state) for state in states]

    def encode(self, neighbor: Sequence[int], chunk: Vectors) -> Vectors:
        """ENCODER of Algorithm 1 for one neighbor of one chunk, H_u = `chunk`."""
        size, model = self.size, self.model
        table = "embedding.weight" if model.shared_embeddings else "encoder.embedding.weight"
        states = [self.weights[table][token] for token in neighbor]
        for p in range(1, size.encoder_layers + 1):
            layer = f"encoder.layers.{p - 1}"
            states = self.residual(f"{layer}.attention", states, self.encoder_attention)
            if model.query_conditioning and p in size.encoder_ca_layers:
                normalized = [self.norm("encoder.chunk_norm", state) for state in chunk]
                states = self.residual(
                    f"{layer}.cross_attention",
                    states,
                    lambda name, inputs, c=normalized: self.encoder_cross_attention(name, inputs, c),
                )
            states = self.residual(f"{layer}.feed_forward", states, self.feed_forward)
        return [self.norm("encoder.norm", state) for state in states]

    def residual(self, name: str, states: Vectors, block: Callable[[str, Vectors], Vectors]) -> Vectors:
        """H + block(norm(H))."""
        changes = block(f"{name}.block", [self.norm(f"{name}.norm", state) for state in states])
        return [state + change for state, change in zip(states, changes, strict=True)]

    def norm(self, name: str, state: Tensor) -> Tensor:
        """RMSNorm."""
        return self.weights[f"{name}.weight"] * state / torch.sqrt((state * state).mean() + self.model.norm_eps)

    def feed_forward(self, name: str, states: Vectors) -> Vectors:
        """FFW."""
        inner, outer = self.weights[f"{name}.input.weight"], self.weights[f"{name}.output.weight"]
        return [outer @ self.activation(inner @ state) for state in states]

    def activation(self, x: Tensor) -> Tensor:
        """GELU(x) = x P(Z <= x) for a standard normal Z, or ReLU."""
        if self.model.activation == "gelu":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return torch.where(x > 0, x, torch.zeros_like(x))

    def relative_attention(self, name: str, states: Vectors) -> Vectors:
        """ATTN: token i attends to the tokens j <= i of its document at distance i - j."""
        query, key, value = self.weights[f"{name}.query_key_value.weight"].chunk(3)
        return [
            self.attend(
                name,
                query,
                key,
                value,
                state,
                [(states[j], i - j) for j in range(i + 1) if self.documents[j] == self.documents[i]],
            )
            for i, state in enumerate(states)
        ]

    def encoder_attention(self, name: str, states: Vectors) -> Vectors:
        """ATTN_enc: every token attends to every token."""
        query, key, value = self.weights[f"{name}.query_key_value.weight"].chunk(3)
        return [
            self.attend(name, query, key, value, state, [(other, i - j) for j, other in enumerate(states)])
            for i, state in enumerate(states)
        ]

    def encoder_cross_attention(self, name: str, states: Vectors, chunk: Vectors) -> Vectors:
        """CA_enc: neighbor token i' attends to chunk token i at distance i' - i."""
        query = self.weights[f"{name}.query.weight"]
        key, value = self.weights[f"{name}.key_value.weight"].chunk(2)
        return [
            self.attend(name, query, key, value, state, [(other, i_ - i) for i, other in enumerate(chunk, start=1)])
            for i_, state in enumerate(states, start=1)
        ]

    def chunked_cross_attention(self, name: str, states: Vectors, encoded: list[list[Vectors]]) -> Vectors:
        """CCA: the attending chunk (h_{um+i-1}), i in 1..m, attends to all tokens of all neighbors of chunk u."""
        name, m = f"{name}.attention", self.model.chunk_length
        query = self.weights[f"{name}.query.weight"]
        key, value = self.weights[f"{name}.key_value.weight"].chunk(2)
        changes = [torch.zeros_like(state) for state in states]
        for u, neighbors in enumerate(encoded, start=1):
            for i in range(1, m + 1):
                token = u * m + i - 1
                if token > len(states):
                    continue
                if any(self.documents[j - 1] != self.documents[token - 1] for j in range((u - 1) * m + 1, u * m + 1)):
                    continue  # some of chunk u is of another document
                attended = [
                    (other, i - i_ + m - 1 if self.model.cca_positions else None)
                    for neighbor in neighbors
                    for i_, other in enumerate(neighbor, start=1)
                ]
                if attended:
                    changes[token - 1] = self.attend(name, query, key, value, states[token - 1], attended)
        return changes

    def attend(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        state: Tensor,
        others: Sequence[tuple[Tensor, int | None]],
    ) -> Tensor:
        """Multi-head attention of one token to `others`, each with its distance, or None for no positions.

        Head by head: softmax(((q + u) . k + (q + v) . R s(d)) / sqrt(A)) (Dai et al. 2019, section 3.3); with rotary
        positions softmax(q . rotated(k, d) / sqrt(A)).
        """
        in_encoder = name.startswith("encoder.")
        heads = self.size.encoder_heads if in_encoder else self.size.heads
        head_size = self.size.encoder_head_size if in_encoder else self.size.head_size
        results = []
        for head in range(heads):
            rows = slice(head * head_size, (head + 1) * head_size)
            q = query[rows] @ state
            logits, values = [], []
            for other, distance in others:
                k = key[rows] @ other
                if distance is None:
                    logit = q @ k
                elif self.model.positions == "rotary":
                    logit = rotary_logit(q, k, distance, self.model.rotary_base)
                else:
                    relative = self.weights[f"{name}.positions.projection.weight"][rows] @ sinusoid(
                        distance, len(state)
                    )
                    u = self.weights[f"{name}.positions.content_bias"][head]
                    v = self.weights[f"{name}.positions.position_bias"][head]
                    logit = (q + u) @ k + (q + v) @ relative
                logits.append(logit / math.sqrt(head_size))
                values.append(value[rows] @ other)
            probabilities = torch.softmax(torch.stack(logits), dim=0)
            results.append(sum(p * v for p, v in zip(probabilities, values, strict=True)))
        return self.weights[f"{name}.output.weight"] @ torch.cat(results)


def sinusoid(distance: int, width: int) -> Tensor:
    """The vector of sines and cosines of one distance."""
    angles = [distance / 10_000 ** (2 * pair / width) for pair in range(width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def rotary_logit(q: Tensor, k: Tensor, distance: int, base: float) -> Tensor:
    """Sum over pairs (a, a + A/2), as complex numbers, of Re(q conj(k) exp(i w d))."""
    half = len(q) // 2
    total = torch.zeros((), dtype=q.dtype)
    for pair in range(half):
        angle = distance * base ** (-2 * pair / len(q))
        product = torch.complex(q[pair], q[pair + half]) * torch.complex(k[pair], k[pair + half]).conj()
        total = total + product.real * math.cos(angle) - product.imag * math.sin(angle)
    return total
