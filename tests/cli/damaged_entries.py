"""Entries of a spectrum.json that are changed, and the sentence that each gets."""

# What is put in place of an entry of a spectrum.json (a path; "-": it is left out), for compare.
ENTRIES = {
    ("schema",): ("hvpspec/spectrum/9", "not a hvpspec/spectrum/1 file."),
    ("parameters",): (0, "damaged: parameters: expected a whole number ≥ 1; got 0."),
    ("complete",): ("yes", 'damaged: complete: expected true or false; got "yes".'),
    ("loss",): ("low", 'damaged: loss: expected a number; got "low".'),
    ("hvps",): (-1, "damaged: hvps: expected a whole number ≥ 0; got -1."),
    ("seconds",): (None, "damaged: seconds: expected a number ≥ 0; got null."),
    ("asked",): (["curvature"], 'damaged: asked[0]: expected one of "eigenvalues", "trace", "frobenius_norm", '
                 '"density"; got "curvature".'),
    ("which",): ("XX", 'damaged: which: expected one of "LM", "LA", "SA", "BE"; got "XX".'),
    ("eigenvalues",): ({"value": 1}, "damaged: eigenvalues: expected a list; got an object."),
    ("eigenvalues", 3): (5, "damaged: eigenvalues[3]: expected an object; got 5."),
    ("eigenvalues", 3, "error"): (-1, "damaged: eigenvalues[3].error: expected a number ≥ 0, or null; got -1."),
    ("eigenvalues", 0, "value"): ("1", 'damaged: eigenvalues[0].value: expected a number; got "1".'),
    ("eigenvalues", 1, "residual"): ("-", "damaged: eigenvalues[1].residual: missing."),
    ("eigenvalues_converged",): (1, "damaged: eigenvalues_converged: expected true or false; got 1."),
    ("trace", "confidence"): (2, "damaged: trace.confidence: expected a number from 0 to 1; got 2."),
    ("trace", "value"): (True, "damaged: trace.value: expected a number, or null; got true."),
    ("trace", "hvps"): (1e300, "damaged: trace.hvps: expected a whole number ≥ 0; got 1e+300."),
    ("trace",): ([], "damaged: trace: expected an object; got a list."),
    ("frobenius_norm", "error"): ("-", "damaged: frobenius_norm.error: missing."),
    ("density", "nodes"): ([], "damaged: density.nodes: expected from 1 to 100,000 numbers; got 0."),
    ("density", "nodes", 0): (1e9, "damaged: density.nodes: expected rising numbers."),
    ("density", "weights", 0): (9, "damaged: density.weights: expected numbers whose sum is 1; got 9.9975."),
    ("density", "exact"): ([True], "damaged: density.exact: expected 5 entries, as many as there are nodes; got 1."),
    ("density", "samples"): (0, "damaged: density.samples: expected a whole number ≥ 1; got 0."),
    ("density", "support"): ([1], "damaged: density.support: expected 2 entries; got 1."),
    ("condition", "kappa", "lower"): ("-", "damaged: condition.kappa.lower: missing."),
    ("condition", "largest", "lower"): (99, "damaged: condition.largest.lower: expected a number ≤ 52, the upper "
                                        "bound; got 99."),
    ("condition", "definite"): ("yes", "damaged: condition.definite: expected one of"),
    ("blocks", "blocks", 0, "name"): (7, "damaged: blocks.blocks[0].name: expected a text; got 7."),
    ("preflight", "findings", 0, "severity"): ("dire", "damaged: preflight.findings[0].severity: expected one of"),
    ("preflight", "measured", "memory"): (-5, "damaged: preflight.measured.memory: expected a whole number ≥ 0; "
                                          "got -5."),
    ("provenance", "checkpoint", "sha256"): ("00", "damaged: provenance.checkpoint.sha256: expected the 64 hexadecimal "
                                             'digits of a SHA-256; got "00".'),
    ("provenance", "command"): ("hvpspec", 'damaged: provenance.command: expected a list; got "hvpspec".'),
}  # fmt: skip
