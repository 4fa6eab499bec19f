# The models, each trained on all healthy training patches (and some on another model), and the methods
# that score with them: one job per method and chunk. docs/methods.md says how to add a method.


rule train:
    input:
        patches=patch_file("train"),
        needed=needed_files,
    output:
        description=result("model/{model}/model.json"),
        weights=result("model/{model}/weights.safetensors"),
        history=result("model/{model}/history.tsv"),
        samples=result("model/{model}/samples.png"),
        real=result("model/{model}/real.png"),
    log:
        f"{LOCAL}/logs/train/{{model}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/train/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        gpu=lambda wildcards: gpus_to_train(config, wildcards.model),
        mem_mb=memory(16000),
        runtime=1440,
    params:
        code=code_version("anogan.train"),
        of_model=lambda wildcards: code_version(f"anogan.methods.{wildcards.model}"),
        needed=needed_option,
        options=lambda wildcards: train_options(config, wildcards.model),
        folder=subpath(output.description, parent=True),
        # what is seen while it runs and what a killed training goes on from: no declared output,
        # as those are removed when the job fails
        meanwhile=lambda wildcards: f"{LOCAL}/training/{wildcards.model}",
    shell:
        "python -m anogan train {wildcards.model} --patches {input.patches:q} {params.needed}"
        " {params.options}"
        " --threads {threads} --gpus {resources.gpu} --memory-mb {resources.mem_mb}"
        " --training-folder {params.meanwhile:q} --output {params.folder:q} > {log:q} 2>&1"


rule score:
    input:
        patches=lambda wildcards: patch_file(wildcards.part),
        description=model_file("model.json"),
        weights=model_file("weights.safetensors"),
    output:
        scores=result("scores/{method}/{part}.parquet"),
        residuals=result("scores/{method}/{part}.residuals.h5"),
    log:
        f"{LOCAL}/logs/score/{{method}}/{{part}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/score/{{method}}/{{part}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: 8 if searches(wildcards.method) else 1
    resources:
        gpu=min(1, config["gpus"]),
        mem_mb=memory(4000),
        runtime=720,
    params:
        code=code_version("anogan.score"),
        of_method=lambda wildcards: code_version(f"anogan.methods.{wildcards.method}"),
        options=lambda wildcards: score_options(config, wildcards.method),
        residuals=config["map"]["residuals"],
        folder=subpath(input.description, parent=True),
    shell:
        "python -m anogan score --patches {input.patches:q} --model {params.folder:q}"
        " --method {wildcards.method} {params.options} --residuals {params.residuals} --threads {threads}"
        " --gpus {resources.gpu} --output {output.scores:q}"
        " --residual-output {output.residuals:q} > {log:q} 2>&1"


rule latent:
    input:
        patches=[
            patch_file(part)
            for part in scored_parts(["test"] if "test" in SPLITS else SHOWN_SPLITS)
        ],
        description=at(f"{model_folder('gan')}/model.json"),
        weights=at(f"{model_folder('gan')}/weights.safetensors"),
    output:
        result("latent/gan.h5"),
    log:
        f"{LOCAL}/logs/latent.log",
    benchmark:
        f"{LOCAL}/benchmarks/latent.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code_version("anogan.latent"),
        folder=subpath(input.description, parent=True),
        seed=config["seed"],
    shell:
        "python -m anogan latent --model {params.folder:q} --patches {input.patches:q}"
        " --seed {params.seed} --threads {threads} --output {output:q}"
        " > {log:q} 2>&1"
