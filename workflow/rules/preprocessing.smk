# From a vendor's file to the flat retina; one job per volume and stage.


if any(row.is_phantom for row in SHEET.rows.values()):

    rule phantom:
        output:
            image=f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.nii.gz",
            sidecar=f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.json",
            annotation=f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.annotation.nii.gz",
            truth=f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.truth.npz",
        log:
            f"{RESULTS}/logs/phantom/{{volume}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/phantom/{{volume}}.tsv"
        threads: 1
        resources:
            mem_mb=1000,
            runtime=5,
        conda:
            "../../environment.yml"
        params:
            code=code_version("preprocessing.phantom"),
            label=from_sheet("label"),
            shape=config["phantom"],
            seed=config["seed"],
        shell:
            "python -m preprocessing phantom --volume {wildcards.volume} --label {params.label}"
            " --bscans {params.shape[bscans]} --depth {params.shape[depth]}"
            " --width {params.shape[width]} --seed {params.seed} --output {output.image:q}"
            " > {log:q} 2>&1"


rule load:
    input:
        unpack(source_files),
    output:
        volume_files("volume"),
    log:
        f"{RESULTS}/logs/load/{{volume}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/load/{{volume}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    conda:
        "../../environment.yml"
    params:
        code=code_version("preprocessing.load"),
        patient=from_sheet("patient"),
        eye=lambda wildcards: f"--eye {eye}" if (eye := SHEET[wildcards.volume].eye) else "",
        annotation=lambda wildcards, input: (
            f"--annotation '{input.annotation}'" if "annotation" in input.keys() else ""
        ),
        mirror="--mirror-left-eyes" if config["load"]["mirror_left_eyes"] else "",
    shell:
        "python -m preprocessing load --input {input.source:q} --volume {wildcards.volume}"
        " --patient {params.patient} {params.eye} {params.annotation} {params.mirror}"
        " --output {output[0]:q} > {log:q} 2>&1"


rule normalise:
    input:
        volume_files("volume"),
    output:
        volume_files("normalised"),
    log:
        f"{RESULTS}/logs/normalise/{{volume}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/normalise/{{volume}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    conda:
        "../../environment.yml"
    params:
        code=code_version("preprocessing.normalise"),
        percentiles=config["normalise"]["percentiles"],
    shell:
        "python -m preprocessing normalise --input {input[0]:q} --percentiles {params.percentiles}"
        " --output {output[0]:q} > {log:q} 2>&1"


rule resample:
    input:
        volume_files("normalised"),
    output:
        volume_files("resampled"),
    log:
        f"{RESULTS}/logs/resample/{{volume}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/resample/{{volume}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    conda:
        "../../environment.yml"
    params:
        code=code_version("preprocessing.resample"),
        x_um=config["resample"]["x_um"],
    shell:
        "python -m preprocessing resample --input {input[0]:q} --x-um {params.x_um}"
        " --output {output[0]:q} > {log:q} 2>&1"


rule segment:
    input:
        volume_files("resampled"),
    output:
        layers=f"{RESULTS}/volumes/{{volume}}/layers.npz",
        picture=f"{RESULTS}/volumes/{{volume}}/layers.png",
        qc=f"{RESULTS}/volumes/{{volume}}/qc.tsv",
    log:
        f"{RESULTS}/logs/segment/{{volume}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/segment/{{volume}}.tsv"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=20,
    conda:
        "../../environment.yml"
    params:
        code=code_version("preprocessing.segment"),
    shell:
        "python -m preprocessing segment --volume {input[0]:q} --layers {output.layers:q}"
        " --picture {output.picture:q} --qc {output.qc:q} > {log:q} 2>&1"


rule flatten:
    input:
        volume=volume_files("resampled"),
        layers=rules.segment.output.layers,
    output:
        volume_files("flat"),
        geometry=f"{RESULTS}/volumes/{{volume}}/flat.geometry.npz",
    log:
        f"{RESULTS}/logs/flatten/{{volume}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/flatten/{{volume}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    conda:
        "../../environment.yml"
    params:
        code=code_version("preprocessing.flatten"),
        flatten=config["flatten"],
    shell:
        "python -m preprocessing flatten --input {input.volume[0]:q} --layers {input.layers:q}"
        " --mode {params.flatten[mode]} --above-um {params.flatten[above_um]}"
        " --below-um {params.flatten[below_um]} --thickness-um {params.flatten[thickness_um]}"
        " --output {output[0]:q} > {log:q} 2>&1"


rule patches:
    input:
        volumes=lambda wildcards: flat_volumes(volumes_of_part(wildcards)),
        geometry=lambda wildcards: [
            path.replace("flat.nii.gz", "flat.geometry.npz")
            for path in flat_volumes(volumes_of_part(wildcards))
        ],
    output:
        f"{RESULTS}/patches/{{split}}-{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/patches/{{split}}-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{split}}-{{chunk}}.tsv"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=120,
    conda:
        "../../environment.yml"
    params:
        code=code_version("preprocessing.patches"),
        labels=lambda wildcards: [SHEET[volume].label for volume in volumes_of_part(wildcards)],
        count=lambda wildcards: (
            f"--total {config['patches']['train_total']}"
            if wildcards.split == "train"
            else f"--per-volume {config['patches'][f'{wildcards.split}_per_volume']}"
        ),
        size=config["patches"]["size"],
        anomalous_fraction=config["patches"]["anomalous_fraction"],
        seed=config["seed"],
    shell:
        "python -m preprocessing patches --inputs {input.volumes:q} --labels {params.labels}"
        " --split {wildcards.split} {params.count} --size {params.size}"
        " --anomalous-fraction {params.anomalous_fraction} --seed {params.seed}"
        " --output {output:q} > {log:q} 2>&1"
