"""Why a file has fewer parameters than the network that was trained: batch norms are folded into the layers before them."""


def why(trained: int, exported: int, norms: int) -> str:
    """The reason in words, to stand after the two numbers; empty if they are the same and no norm is folded.

    Args:
        trained: parameters of the trained network.
        exported: those in the file, without running means and variances.
        norms: batch norms that the export folded.
    """
    if norms:
        which = "the batch norm is" if norms == 1 else f"{norms} batch norms are"
        layer = "layer before it" if norms == 1 else "layers before them"
        return f"{which} folded into the {layer}: the filters take up the scale of each channel, and a bias the shift"
    return "" if trained == exported else "the exporter stores some values once for several layers, or adds constants"
