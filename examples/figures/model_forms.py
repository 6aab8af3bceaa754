"""Draw mixtures of whole models, and several tasks on one trunk."""

from sketch import MIDDLE, ROWS_3, Sketch

MODELS = ("convolution", "LSTM", "bag of words")
CHOSEN = (False, True, False, True)


def models_dense():
    s = Sketch(
        "MixtureOfModels(experts)",
        "Every model runs on every example; the outputs are weighted.",
    )
    s.box(34, 82, "example", "data", w=48)
    s.box(104, 140, "features,\nrouter", "router", w=52, h=30)
    s.arrow((34, 94), (78, 140), bend=-0.25)
    places = s.bank(190, (120, 82, 44), MODELS, w=66)
    s.fan((58, 82), places, w=66)
    s.mix(282, 82)
    s.gather(places, (273, 82), w=66)
    s.line([(130, 150), (282, 150), (282, 91)])
    s.text(206, 158, "weights 0.6, 0.3, 0.1", size=6)
    s.arrow((291, 82), (306, 82))
    s.box(329, 82, "output", "data", w=44)
    return s


def models_sparse():
    s = Sketch(
        "MixtureOfModels(experts, top_k=1)",
        "An example goes to only K models; the others do not run.",
    )
    s.box(34, MIDDLE, "example", "data", w=48)
    s.box(108, MIDDLE, "features,\nrouter", "router", w=52, h=30)
    s.arrow((58, MIDDLE), (82, MIDDLE))
    runs = (False, True, False)
    places = s.bank(204, ROWS_3, MODELS, runs, w=66)
    s.fan((134, MIDDLE), places, runs, w=66)
    s.mix(282, MIDDLE)
    s.gather(places, (273, MIDDLE), runs, w=66)
    s.arrow((291, MIDDLE), (306, MIDDLE))
    s.box(329, MIDDLE, "output", "data", w=44)
    return s


def multi_gate_moe():
    s = Sketch(
        "MultiGateMoE",
        "Every expert runs once; each task has its own weights.",
    )
    s.box(32, MIDDLE, "row", "data", w=40)
    places = s.bank(168, (128, 98, 68), ["expert"] * 3, w=48, h=22)
    s.fan((52, MIDDLE), places, w=48)
    for y, task in ((156, "A"), (40, "B")):
        s.box(96, y, f"router {task}", "router", w=50, h=22)
        s.arrow((40, 98 + (12 if y > 98 else -12)), (71, y))
        mix = 132 if y > 98 else 64
        s.mix(260, mix)
        s.line([(121, y), (260, y), (260, mix + (9 if y > 98 else -9))])
        s.gather(places, (251, mix), w=48)
        s.arrow((269, mix), (294, mix))
        s.box(321, mix, f"task {task}", "data", w=54)
    return s


def ple():
    s = Sketch(
        "PLE (one layer of it: CGC)",
        "A task mixes its own and the shared experts; each + has a router.",
    )
    s.box(28, MIDDLE, "row", "data", w=36)
    names = ["task A's", "shared", "task B's"]
    for x, before in ((100, 46), (222, 168)):
        for y, name in zip(ROWS_3, names, strict=True):
            s.box(x, y, name, w=50)
            start = MIDDLE if x == 100 else y
            s.arrow((before, start), (x - 25, y))
    for x, rows in ((159, ROWS_3), (281, (141, 55))):
        for y in rows:
            s.mix(x, y)
            sources = [y, MIDDLE] if y != MIDDLE else ROWS_3
            for source in sources:
                s.arrow((x - 34, source), (x - 9, y))
    for y, task in ((141, "A"), (55, "B")):
        s.arrow((290, y), (305, y))
        s.box(328, y, f"task {task}", "data", w=44)
    s.text(100, 166, "experts, layer 1", size=6)
    s.text(222, 166, "experts, layer 2", size=6)
    return s


def ensemble():
    s = Sketch(
        "Ensemble", "All trained models run; they are frozen by default."
    )
    s.box(36, MIDDLE, "example", "data", w=48)
    names = ["member 0", "member 1", "member 2"]
    places = s.bank(140, ROWS_3, names)
    s.fan((60, MIDDLE), places)
    s.box(
        240, MIDDLE, "mean, votes,\nweights,\nmeta model", "combine", w=72, h=46
    )
    s.gather(places, (204, MIDDLE))
    s.arrow((276, MIDDLE), (302, MIDDLE))
    s.box(325, MIDDLE, "output", "data", w=46)
    return s


def language_model():
    s = Sketch(
        "MoELanguageModel(moe_every=2)",
        "Every n-th block has experts; the others have one network.",
    )
    s.box(26, MIDDLE, "token\nids", "data", w=36, h=28)
    last = 44
    for n in range(4):
        x = 86 + 62 * n
        s.frame(x, MIDDLE, 52, 96, f"block {n + 1}")
        s.box(x, 134, "attention", "data", w=46, h=18, size=6)
        if n % 2:
            s.box(x, 102, "router", "router", w=46, h=18, size=6)
            s.arrow((x, 125), (x, 111))
            for e, on in enumerate(CHOSEN):
                s.box(x - 17.2 + 11.5 * e, 66, runs=on, w=9, h=26)
                end = (x - 17.2 + 11.5 * e, 79)
                s.arrow((x, 93), end, on)
        else:
            s.box(x, 78, "network", w=46, h=50, size=6)
            s.arrow((x, 125), (x, 103))
        s.arrow((last, MIDDLE), (x - 26, MIDDLE))
        last = x + 26
    s.arrow((last, MIDDLE), (308, MIDDLE))
    s.box(329, MIDDLE, "next\ntoken", "data", w=42, h=28)
    s.line([(329, 84), (329, 34), (26, 34), (26, 84)])
    s.text(180, 27, "generate", size=6)
    return s
