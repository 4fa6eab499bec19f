# The model: one training on all healthy training volumes, then one mapping job per chunk.


rule train:
    input:
        f"{RESULTS}/patches/train.h5",
    output:
        generator=f"{MODEL}/generator.safetensors",
        discriminator=f"{MODEL}/discriminator.safetensors",
        description=f"{MODEL}/model.json",
        history=f"{MODEL}/history.tsv",
        samples=f"{MODEL}/samples.png",
        real=f"{MODEL}/real.png",
    log:
        f"{RESULTS}/logs/train.log",
    benchmark:
        f"{RESULTS}/benchmarks/train.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        gpu=config["gpus"],
        mem_mb=memory(16000),
        runtime=1440,
    params:
        code=code_version("anogan.train"),
        model=config["model"],
        train=config["train"],
        seed=config["seed"],
        folder=subpath(output.description, parent=True),
    shell:
        "python -m anogan train --patches {input:q} --channels {params.model[channels]}"
        " --latent {params.model[latent]} --epochs {params.train[epochs]}"
        " --batch-size {params.train[batch_size]} --learning-rate {params.train[learning_rate]}"
        " --beta1 {params.train[beta1]} --seed {params.seed} --threads {threads}"
        " --gpus {resources.gpu} --output {params.folder:q} > {log:q} 2>&1"


rule map:
    input:
        patches=f"{RESULTS}/patches/{{part}}.h5",
        description=rules.train.output.description,
        generator=rules.train.output.generator,
        discriminator=rules.train.output.discriminator,
    output:
        scores=f"{RESULTS}/scores/{{part}}.parquet",
        residuals=f"{RESULTS}/scores/{{part}}.residuals.h5",
    log:
        f"{RESULTS}/logs/map/{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/map/{{part}}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        gpu=config["gpus"],
        mem_mb=memory(4000),
        runtime=720,
    params:
        code=code_version("anogan.map"),
        map={key: value for key, value in config["map"].items() if key != "chunks"},
        seed=config["seed"],
        folder=subpath(input.description, parent=True),
    shell:
        "python -m anogan map --patches {input.patches:q} --model {params.folder:q}"
        " --methods {params.map[methods]} --steps {params.map[steps]}"
        " --learning-rate {params.map[learning_rate]} --schedule {params.map[schedule]}"
        " --candidates {params.map[candidates]} --restarts {params.map[restarts]} --weight {params.map[lambda]}"
        " --feature-layer {params.map[feature_layer]} --batch-size {params.map[batch_size]}"
        " --residuals {params.map[residuals]} --seed {params.seed} --threads {threads}"
        " --gpus {resources.gpu} --output {output.scores:q}"
        " --residual-output {output.residuals:q} > {log:q} 2>&1"
