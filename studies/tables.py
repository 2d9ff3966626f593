"""Tables of the documents as Markdown lines, from rows of CSV and JSON files; ``studies.figures`` writes them."""

import statistics

from brats_inpainting.config import BUNDLED
from brats_inpainting.diffusion import checkpoint
from studies import rows

MODELS = {
    "volume-2": "**`volume-2`, 3D (default)**",
    "small-2": "`small-2`, 2D",
    "telea": "Telea, 2D",
    "biharmonic": "biharmonic, 2D",
    "mirror": "mirrored hemisphere",
    "mean": "mean of the brain",
}
SCORES = {"SSIM": ("ssim", ".3f"), "PSNR": ("psnr", ".2f"), "MSE": ("mse", ".4f")}
CASES = 16  # of the validation set
STEPS = ((0, 4), (5, 9), (10, 19), (20, 999))  # slices
MORE = {"MAE": ("mae", ".3f"), "stripes": ("stripe_index", ".2f"), "boundary": ("boundary_contrast", ".2f")}


def markdown(header, body):
    """Return a table as Markdown lines."""
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (header, *body))
    first, *lines = (f"| {' | '.join(row)} |" for row in escaped)
    return [first.replace("|  |", "| |"), "|" + "---|" * len(header), *lines]


def mean(found, column):
    """Return the mean of a column."""
    return statistics.mean(float(row[column]) for row in found)


def means(found, columns):
    """Return the means of columns: title → (column, format)."""
    return [f"{mean(found, column):{f}}" for column, f in columns.values()]


def spreads(found, columns):
    """Return means ± standard deviations of columns."""
    stds = (statistics.stdev(float(row[column]) for row in found) for column, _ in columns.values())
    formats = (f for _, f in columns.values())
    return [f"{m} ± {std:{f}}" for m, std, f in zip(means(found, columns), stds, formats, strict=True)]


def by_model(read):
    """Return model → its rows, in the order of MODELS."""
    groups = rows.grouped(read, "model")
    return {model: groups[model,] for model in MODELS}


def scores(read):
    """Mean ± standard deviation over the cases, by model."""
    return markdown(
        ["", *(SCORES | MORE)], [[MODELS[m], *spreads(of, SCORES | MORE)] for m, of in by_model(read).items()]
    )


def challenge_scores(read):
    """The challenge's three scores, without the mean fill."""
    body = [[MODELS[m], *spreads(of, SCORES)] for m, of in by_model(read).items() if m != "mean"]
    return markdown(["", "SSIM ↑", "PSNR ↑", "MSE ↓"], body)


def robustness(read):
    """Scores of both bundled networks for changed scans, and the PSNR lost against the unchanged ones."""
    names = {checkpoint.sha256(path)[:8]: name for name, path in BUNDLED.items()}
    columns = {key: SCORES[key] for key in ("SSIM", "PSNR")}
    by_weights = rows.grouped(read, "weights")
    of = {name: rows.grouped(by_weights[key,], "scans") for key, name in names.items() if (key,) in by_weights}
    body = []
    for (scans,) in of["volume-2"]:
        cells = [scans]
        for name in ("volume-2", "small-2"):
            found, whole = of[name][scans,], of[name]["as they are",]
            cells += [*means(found, columns), f"{mean(whole, 'psnr') - mean(found, 'psnr') + 0.0:+.2f}"]
        body.append(cells)
    return markdown(["scans", "`volume-2`: SSIM", "PSNR", "dB lost", "`small-2`: SSIM", "PSNR", "dB lost"], body)


def presets(read):
    """Scores and texture by setting of the sampler, without filter; settings that were measured on all cases."""
    columns = {"passes": ("passes", ".0f")} | SCORES | {key: (key, ".2f") for key in ("sharpness", "stripes")}
    keys = ("sampler", "spacing", "steps", "samples", "flip")
    body = []
    for setting, found in rows.grouped(rows.matching(read, {"finish": "none"}), *keys).items():
        sampler, spacing, steps, samples, flip = setting
        name = f"{sampler}, {spacing}" if int(steps) > 1 and sampler == "ddim" else sampler
        if len(found) == CASES:
            body.append([name, steps, samples, "yes" if flip == "True" else "no", *means(found, columns)])
    return markdown(["sampler", "steps", "samples", "flips", *columns], body)


def recipes(read):
    """PSNR of one change at a time to the base recipe, by seed."""
    body = []
    for (factor, variant), found in rows.grouped(read, "factor", "variant").items():
        by_seed = {row["seed"]: f"{float(row['psnr']):.2f}" for row in found}
        body.append([factor, variant, *(by_seed.get(seed, "–") for seed in ("0", "1"))])
    return markdown(["what", "variant", "seed 0", "seed 1"], body)


def discussion(read):
    """Scores and texture of the variants of the paper's discussion, means over the cases, which all settings have."""
    of = rows.grouped(read, "setting")
    single = of["small-2",]
    if {len(found) for found in of.values()} != {len(single)}:
        raise ValueError("discussion.csv: settings have different cases; complete it with studies.discussion")
    columns = SCORES | {key: (key, ".2f") for key in ("sharpness", "stripes")} | {"seconds": ("seconds", ".0f")}
    body = [[setting, *means(found, columns)] for (setting,), found in of.items()]
    truth = ["truth", *["–"] * len(SCORES), "1.00", *means(single, {"stripes": ("stripes_truth", ".2f")}), "–"]
    return markdown([f"{len(single)} cases", *columns], [*body, truth])


def sequence(read):
    """Squared error in relation to that of single slices, by how many slices in a row were filled before."""
    of = rows.grouped(read, "setting")
    alone = {(row["case"], row["z"]): float(row["mse"]) for row in of["small-2",]}
    body = []
    for (setting,), found in of.items():
        cells = []
        for first, last in STEPS:
            here = [row for row in found if first <= int(row["step"]) <= last and (row["case"], row["z"]) in alone]
            base = sum(alone[row["case"], row["z"]] for row in here)
            cells.append(f"{sum(float(row['mse']) for row in here) / base:.2f}" if here else "–")
        if setting.startswith("sequential"):
            body.append([setting, *cells])
    return markdown(
        ["filled before", *(f"{first}–{last}" for first, last in STEPS[:-1]), f"{STEPS[-1][0]} or more"], body
    )


def gpu_training(read):
    """Windows that training takes in a second."""
    found = [row for row in read if "windows/s" in row]
    body = [[row["part"], row["name"], f"{row['windows/s']:.0f}", f"{row['peak_gb']:.1f}"] for row in found]
    return markdown(["a step", "how", "windows/s", "peak, GB"], body)
