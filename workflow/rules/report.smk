# The evidence: metrics, figures and the page that shows them.

FIGURES = ["roc_methods", "roc_scores", "distributions", "precision_recall", "panel", "gallery"]
FIGURES += ["calibration", "strip", "training"]
LATENT = []  # what the GAN has made of patches, if there is one
if "gan" in MODELS:
    FIGURES += ["tsne", "walks"]
    LATENT = [result("latent/gan.h5")]


rule evaluate:
    input:
        scores=[path for method in config["methods"] for path in score_files(method, ".parquet")],
        maps=[path for method in MAPPED_METHODS for path in maps_of(method, ["validation", "test"])],
    output:
        metrics=report(
            result("report/metrics.tsv"),
            caption="../report/metrics.rst",
            category="Metrics",
        ),
        differences=report(
            result("report/differences.tsv"),
            caption="../report/differences.rst",
            category="Metrics",
        ),
        details=result("report/metrics.json"),
        cases=result("report/{level}.tsv", level=["bscans", "volumes", "patients"]),
    log:
        f"{LOCAL}/logs/evaluate.log",
    benchmark:
        f"{LOCAL}/benchmarks/evaluate.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code_version("anogan.evaluate"),
        settings=config["evaluate"],
        maps=lambda wildcards, input: option("--maps", input.maps),
        seed=config["seed"],
    shell:
        "python -m anogan evaluate --scores {input.scores:q} {params.maps}"
        " --bootstrap {params.settings[bootstrap]} --specificity {params.settings[specificity]}"
        " --aggregation {params.settings[aggregation]} --top-share {params.settings[top_share]}"
        " --percentile {params.settings[percentile]} --seed {params.seed}"
        " --output {output.metrics:q} > {log:q} 2>&1"


rule report:
    input:
        scores=rules.evaluate.input.scores,
        residuals=score_files(HEADLINE, ".residuals.h5"),
        metrics=rules.evaluate.output.metrics,
        evaluation=[value for name, value in rules.evaluate.output.items() if name != "metrics"],
        overlays=result(
            "overlays/{volume}",
            volume=[v for split in SHOWN_SPLITS for v in SHEET.volumes(split) if MAPPED_METHODS],
        ),
        latent=LATENT,
        markers=MARKERS,
        description=at(f"{model_folder(model_of(HEADLINE))}/model.json"),
        training=training_pictures,
        qc=result("volumes/{volume}/qc.tsv", volume=USED_VOLUMES),
        pictures=result(
            "volumes/{volume}/{picture}.png",
            volume=shown_volumes(),
            picture=["layers", "enface"],
        ),
    output:
        **{
            name: report(
                result(f"report/figures/{name}.svg"),
                caption=f"../report/{name}.rst",
                category="Figures",
            )
            for name in FIGURES
        },
        page=report(
            result("report/index.html"),
            caption="../report/page.rst",
            category="Report",
        ),
        table=report(
            result("report/table.tex"),
            caption="../report/table.rst",
            category="Metrics",
        ),
        skipped=result("report/skipped.tsv"),
        png=result("report/figures/{name}.png", name=FIGURES),
        config=result("report/config.yaml"),
    log:
        f"{LOCAL}/logs/report.log",
    benchmark:
        f"{LOCAL}/benchmarks/report.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code_version("anogan.report", "anogan/page/templates"),
        model=subpath(input.description, parent=True),
        splits=[SHEET[volume].split for volume in USED_VOLUMES],
        leave_out=config["patches"]["leave_out_bscans"],
        overlays=lambda wildcards, input: option("--overlays", input.overlays),
        latent=lambda wildcards, input: option("--latent", input.latent),
        markers=lambda wildcards, input: option("--markers", input.markers),
        max_mb=config["report"]["max_mb"],
        # as text, so that any other value renews the report and the two never disagree
        config=yaml.safe_dump(config, sort_keys=False),
        phantom="--phantom" if any(row.is_phantom for row in SHEET.rows.values()) else "",
    shell:
        "printf %s {params.config:q} > {output.config:q} 2> {log:q} &&"
        " python -m anogan report --scores {input.scores:q} --residuals {input.residuals:q}"
        " --metrics {input.metrics:q} --model {params.model:q} --qc {input.qc:q}"
        " --splits {params.splits} --leave-out {params.leave_out}"
        " --qc-pictures {input.pictures:q}"
        " {params.overlays} {params.latent} {params.markers} --max-mb {params.max_mb}"
        " --config {output.config:q} {params.phantom} --output {output.page:q} > {log:q} 2>&1"
