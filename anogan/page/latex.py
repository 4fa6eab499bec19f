"""The paper's table as LaTeX, to be read into a manuscript."""

from anogan.page.inputs import Evidence
from anogan.page.tables import TABLE_COLUMNS, comparison_rows

NAMES = {
    "anogan": "AnoGAN, $A(x)$",
    "r_anogan": "restoring AnoGAN, $S(x)$",
    "f_anogan_refined": "f-AnoGAN refined, $A(x)$",
    "f_anogan": "f-AnoGAN, $A(x)$",
    "gan_r": r"GAN$_R$, $\hat{A}(x)$",
    "p_d": "$P_D$",
}
SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\N{EN DASH}": "--",
        "\N{MINUS SIGN}": "$-$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
HEAD = r"""%% needs \usepackage{booktabs}
\begin{table}
  \centering
  \caption{%s}
  \label{tab:anogan}
  \begin{tabular}{l%s}
    \toprule
    method & %s \\
    \midrule
"""
TAIL = r"""    \bottomrule
  \end{tabular}
\end{table}
"""
PHANTOM_NOTE = "Synthetic phantom eyes, no patients. "
PAPER_NOTE = "In italics: figures of Schlegl et al.\\ (2017), from other data."


def latex_table(evidence: Evidence, methods: list[str], is_phantom: bool) -> str:
    """Return the paper's table with 95 % intervals, at the threshold chosen on validation.

    Where the eyes are phantoms, the caption says so.
    """
    rows = comparison_rows(evidence, methods, "")
    heads = " & ".join("AUC" if column == "auc" else column for column in TABLE_COLUMNS)
    caption = (PHANTOM_NOTE if is_phantom else "") + _caption(evidence, methods[0])
    lines = [HEAD % (caption, "r" * len(TABLE_COLUMNS), heads)]
    for row in rows:
        name = NAMES.get(row["score"], row["name"].translate(SPECIAL))
        cells = [value.translate(SPECIAL) for value, _ in row["cells"]]
        if row["paper"]:
            cells = [rf"\textit{{{text}}}" for text in cells]
            name = rf"\textit{{{name}, paper}}"
        lines.append(f"    {' & '.join([name, *cells])} \\\\\n")
        between = [text.replace(" to ", "--") for _, text in row["cells"]]
        if any(between):
            small = [rf"{{\footnotesize {text}}}" if text else "" for text in between]
            lines.append(f"    {' & '.join(['', *small])} \\\\\n")
    return "".join([*lines, TAIL])


def _caption(evidence: Evidence, headline: str) -> str:
    values = evidence.measured("patch", headline)["value"]
    if values.empty:
        return f"Nothing was measured, as no test patch has a label. {PAPER_NOTE}"
    return (
        f"Anomalous against normal test patches ({values['n_anomalous']:.0f} of {values['n']:.0f} "
        f"anomalous, {values['n_patients']:.0f} patients) at the threshold chosen on validation, "
        f"with 95\\,\\% intervals from a bootstrap over patients. {PAPER_NOTE}"
    )
