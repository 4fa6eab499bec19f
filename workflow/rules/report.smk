# The evidence: metrics, figures and the page that shows them.

FIGURES = ["roc_methods", "roc_scores", "distributions", "panel", "training"]


rule resolved_config:
    output:
        f"{RESULTS}/config.yaml",
    log:
        f"{RESULTS}/logs/resolved_config.log",
    benchmark:
        f"{RESULTS}/benchmarks/resolved_config.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(100),
        runtime=1,
    params:
        text=yaml.safe_dump(config, sort_keys=False),
    shell:
        "printf %s {params.text:q} > {output:q} 2> {log:q}"


rule evaluate:
    input:
        scores=[path for method in config["methods"] for path in scored_parts(method, ".parquet")],
    output:
        metrics=report(
            f"{RESULTS}/report/metrics.tsv",
            caption="../report/metrics.rst",
            category="Metrics",
        ),
        evaluation=f"{RESULTS}/report/evaluation.json",
        volumes=f"{RESULTS}/report/volumes.tsv",
    log:
        f"{RESULTS}/logs/evaluate.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code_version("anogan.evaluate"),
        bootstrap=config["evaluate"]["bootstrap"],
        healthy_quantile=config["evaluate"]["healthy_quantile"],
        seed=config["seed"],
    shell:
        "python -m anogan evaluate --scores {input.scores:q} --bootstrap {params.bootstrap}"
        " --healthy-quantile {params.healthy_quantile} --seed {params.seed}"
        " --output {output.metrics:q} > {log:q} 2>&1"


rule report:
    input:
        scores=rules.evaluate.input.scores,
        residuals=scored_parts(HEADLINE, ".residuals.h5"),
        metrics=rules.evaluate.output.metrics,
        evaluation=rules.evaluate.output.evaluation,
        volumes=rules.evaluate.output.volumes,
        description=f"{model_folder(model_of(HEADLINE))}/model.json",
        training=training_pictures,
        qc=expand(
            f"{RESULTS}/volumes/{{volume}}/qc.tsv",
            volume=[volume for split in USED_SPLITS for volume in SHEET.volumes(split)],
        ),
        pictures=expand(
            f"{RESULTS}/volumes/{{volume}}/{{picture}}.png",
            volume=shown_volumes(),
            picture=["layers", "enface"],
        ),
        config=rules.resolved_config.output,
    output:
        page=report(
            f"{RESULTS}/report/index.html",
            caption="../report/page.rst",
            category="Report",
        ),
        svg=report(
            expand(f"{RESULTS}/report/figures/{{name}}.svg", name=FIGURES),
            caption="../report/figures.rst",
            category="Figures",
        ),
        png=expand(f"{RESULTS}/report/figures/{{name}}.png", name=FIGURES),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code_version("anogan.report", "anogan/templates/report.html.j2"),
        model=subpath(input.description, parent=True),
        leave_out=config["patches"]["leave_out_bscans"],
        phantom="--phantom" if any(row.is_phantom for row in SHEET.rows.values()) else "",
    shell:
        "python -m anogan report --scores {input.scores:q} --residuals {input.residuals:q}"
        " --metrics {input.metrics:q} --model {params.model:q} --qc {input.qc:q}"
        " --leave-out {params.leave_out} --qc-pictures {input.pictures:q}"
        " --config {input.config:q} {params.phantom} --output {output.page:q} > {log:q} 2>&1"
