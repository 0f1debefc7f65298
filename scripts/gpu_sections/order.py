"""The sections of scripts/gpu in the order in which they are measured: what may be wrong first, the benchmark last."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_sections import (
    benchmark,
    choice,
    failures,
    inner_products,
    lanczos_steps,
    long_vectors,
    marked_tests,
    memory_use,
    precision,
    products,
)
from gpu_sections.running import Measure


@dataclass(frozen=True)
class Section:
    """seconds: its share of nine minutes; what one leaves of it the next ones have."""

    title: str
    seconds: float
    measure: Measure


SECTIONS = (
    Section("Tests marked gpu", 65, marked_tests.measure),
    Section("Estimators under TF32", 20, precision.measure),
    Section("Milliseconds per product", 65, products.measure),
    Section("Inner products", 15, inner_products.measure),
    Section("Twenty Lanczos steps", 20, lanczos_steps.measure),
    Section("Memory around the preflight", 15, memory_use.around_the_preflight),
    Section("Forced failures", 25, failures.measure),
    Section("Graph memory", 15, memory_use.of_graphs),
    Section("Basis on the CPU", 15, long_vectors.basis),
    Section("Probes and solve", 20, long_vectors.probes_and_solve),
    Section("The choice of auto", 30, choice.measure),
    Section("Benchmark: GPT 124 M, 1,024 tokens", 75, benchmark.of("gpt")),
    Section("Benchmark: ResNet-50", 50, benchmark.of("resnet")),
    Section("Benchmark: ViT-B", 45, benchmark.of("vit")),
    Section("Benchmark: ResNet-20 0.27 M", 25, benchmark.of("resnet20")),
    Section("Benchmark: GPT 0.94 M", 25, benchmark.of("small gpt")),
)
