"""Draw the forms in which a layer sends tokens to experts."""

from sketch import MIDDLE, ROWS_3, ROWS_4, Sketch

CHOSEN = (False, True, False, True)


def moe_block():
    s = Sketch("MoEBlock", "Each token goes to K of E experts, here 2 of 4.")
    one = [False, True, False, False]
    s.tokens(30, MIDDLE, ["data"] * 4, one)
    s.text(30, 56, "tokens")
    s.box(100, MIDDLE, "router", "router")
    s.arrow((37, 105), (73, 100))
    places = s.bank(200, ROWS_4, [f"expert {n}" for n in range(4)], CHOSEN)
    s.fan((127, MIDDLE), places, CHOSEN)
    s.mix(282, MIDDLE)
    s.gather(places, (273, MIDDLE), CHOSEN)
    s.arrow((291, MIDDLE), (323, 105))
    s.tokens(330, MIDDLE, ["data"] * 4, one)
    return s


def example_level():
    s = Sketch(
        'MoEBlock(experts=[...], level="example")',
        "Each whole example goes to K of E experts, by its mean token.",
    )
    s.tokens(41, MIDDLE, ["data"] * 4, row=True)
    s.frame(41, MIDDLE, 64, 22, "example")
    s.box(120, MIDDLE, "router\n(mean)", "router", w=48, h=28)
    s.arrow((73, MIDDLE), (96, MIDDLE))
    runs = (False, True, False)
    places = s.bank(205, ROWS_3, ["Conv1D", "LSTM", "Dense"], runs)
    s.fan((144, MIDDLE), places, runs)
    s.mix(267, MIDDLE)
    s.gather(places, (258, MIDDLE), runs)
    s.arrow((276, MIDDLE), (287, MIDDLE))
    s.tokens(319, MIDDLE, ["data"] * 4, row=True)
    s.frame(319, MIDDLE, 64, 22)
    return s


def soft_moe():
    s = Sketch(
        "SoftMoE",
        "Each slot mixes all tokens, and each output mixes all slots.",
    )
    tokens = [MIDDLE + 21 - 14 * n for n in range(4)]
    s.tokens(30, MIDDLE, ["data"] * 4)
    s.tokens(330, MIDDLE, ["data"] * 4)
    s.text(30, 56, "tokens")
    for y in ROWS_3:
        for x, kind in ((118, "router"), (242, "combine")):
            s.box(x, y, "slot", kind, w=30, h=18, size=6)
        s.box(180, y, "expert")
        s.arrow((133, y), (153, y))
        s.arrow((207, y), (227, y))
        for token in tokens:
            s.arrow((37, token), (103, y))
            s.arrow((257, y), (323, token))
    return s


def hierarchical_moe():
    s = Sketch(
        "HierarchicalMoE",
        "A token goes to M of G groups, and to experts within them.",
    )
    s.tokens(24, MIDDLE, ["data"])
    s.text(24, 82, "token")
    s.box(80, MIDDLE, "router of\ngroups", "router", w=50, h=30)
    s.arrow((30, MIDDLE), (55, MIDDLE))
    for top, runs in ((136, True), (62, False)):
        name = "group 0" if runs else "group 1"
        s.frame(202, top, 148, 54, name, runs)
        s.box(158, top, "router", "router", runs, w=44)
        s.arrow((105, MIDDLE), (136, top), runs)
        chosen = (runs, False)
        heights = (top + 13, top - 13)
        places = s.bank(244, heights, ["expert", "expert"], chosen, w=48, h=18)
        s.fan((180, top), places, chosen, w=48)
        s.gather(places, (299, MIDDLE), chosen, w=48)
    s.mix(308, MIDDLE)
    s.arrow((317, MIDDLE), (333, MIDDLE))
    s.tokens(340, MIDDLE, ["data"])
    return s


def shared_experts():
    s = Sketch(
        "MoEBlock(E, experts=first.experts)",
        "Each layer has its own router; the experts are one set of weights.",
    )
    s.box(32, 140, "tokens", "data", w=40)
    s.box(328, 140, "tokens", "data", w=40)
    last = 52
    for x in (113, 247):
        s.frame(x, 140, 98, 32)
        s.box(x - 22, 140, "router", "router", w=42)
        s.mix(x + 30, 140)
        s.arrow((last, 140), (x - 43, 140))
        last = x + 39
    s.arrow((last, 140), (308, 140))
    s.text(113, 164, "first", size=6)
    s.text(247, 164, "second", size=6)
    s.frame(180, 52, 216, 34)
    for n, on in enumerate(CHOSEN):
        s.box(102 + 52 * n, 52, "expert", runs=on, w=46, h=22)
    s.arrow((91, 128), (148, 69))
    s.arrow((158, 69), (143, 131))
    s.arrow((225, 128), (202, 69))
    s.arrow((212, 69), (277, 131))
    return s


def modalities():
    s = Sketch(
        "ModalityEmbedding, ModalityRouter",
        "Tokens of all modalities go through one trunk.",
    )
    kinds = ["text", "image", "sound"]
    for y, kind in zip(ROWS_3, kinds, strict=True):
        s.tokens(42, y, [kind] * 3, row=True)
        s.text(42, y - 13, kind, size=6)
        s.arrow((64, y), (93, MIDDLE + 0.4 * (y - MIDDLE)))
    mixed = ["text"] * 3 + ["image"] * 3 + ["sound"] * 3
    s.tokens(100, MIDDLE, mixed, side=9)
    s.box(158, MIDDLE, "router", "router", w=44)
    s.arrow((106, MIDDLE + 48), (136, MIDDLE + 4))
    names = ["expert 0", "expert 1", "expert 2", "expert 3"]
    runs = (True, True, False, False)
    places = s.bank(230, ROWS_4, names, runs, w=50)
    s.fan((180, MIDDLE), places, runs, w=50)
    s.mix(293, MIDDLE)
    s.gather(places, (284, MIDDLE), runs, w=50)
    s.arrow((302, MIDDLE), (330, MIDDLE + 48))
    s.tokens(337, MIDDLE, mixed, side=9)
    return s
