# From a vendor's file to patches; two jobs per volume, as hundreds of volumes are to be planned in
# seconds. The stages within `prepare` are commands of their own, to run by hand. `on_volume_error` is
# no param of the two: good volumes are not made again where it changes.


if any(row.is_phantom for row in SHEET.rows.values()):

    rule phantom:
        output:
            image=at(f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.nii.gz"),
            sidecar=at(f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.json"),
            annotation=at(f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.annotation.nii.gz"),
            truth=at(f"{DATA}/{PHANTOM_FOLDER}/{{volume}}.truth.npz"),
        log:
            f"{LOCAL}/logs/phantom/{{volume}}.log",
        benchmark:
            f"{LOCAL}/benchmarks/phantom/{{volume}}.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=memory(1000),
            runtime=5,
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
        unpack(load_inputs),
    output:
        **volume_files("volume"),
    log:
        f"{LOCAL}/logs/load/{{volume}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/load/{{volume}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        on_error=ON_ERROR,
        mem_mb=memory(2000),
        runtime=10,
    params:
        code=code_version("preprocessing.load"),
        patient=from_sheet("patient"),
        source=lambda wildcards: local_copy(data(row_of(wildcards).path)),
        eye=eye_option,
        spacing=spacing_option,
        already=already_option,
        annotation=annotation_option,
        mirror=(
            "--mirror-left-eyes" if config["load"]["mirror_left_eyes"] else "--no-mirror-left-eyes"
        ),
    shell:
        "python -m preprocessing load --input {params.source:q} --volume {wildcards.volume}"
        " --patient {params.patient} {params.eye} {params.spacing} {params.already}"
        " {params.annotation} {params.mirror} --on-error {resources.on_error}"
        " --output {output.image:q} > {log:q} 2>&1"


rule prepare:
    input:
        **volume_files("volume"),
    output:
        **{f"resampled_{name}": path for name, path in volume_files("resampled").items()},
        **volume_files("flat"),
        geometry=result("volumes/{volume}/flat.geometry.npz"),
        layers=result("volumes/{volume}/layers.npz"),
        qc=result("volumes/{volume}/qc.tsv"),
    log:
        f"{LOCAL}/logs/prepare/{{volume}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/prepare/{{volume}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        on_error=ON_ERROR,
        mem_mb=memory(3000),
        runtime=20,
    params:
        code=code_version("preprocessing.prepare"),
        percentiles=config["normalise"]["percentiles"],
        x_um=config["resample"]["x_um"],
        flatten=config["flatten"],
        folder=subpath(output.image, parent=True),
    shell:
        "python -m preprocessing prepare --input {input.image:q} --percentiles {params.percentiles}"
        " --x-um {params.x_um} --mode {params.flatten[mode]} --above-um {params.flatten[above_um]}"
        " --below-um {params.flatten[below_um]} --thickness-um {params.flatten[thickness_um]}"
        " --on-error {resources.on_error} --folder {params.folder:q} > {log:q} 2>&1"


rule qc_pictures:
    input:
        **volume_files("resampled"),
        layers=rules.prepare.output.layers,
        table=rules.prepare.output.qc,
    output:
        picture=result("volumes/{volume}/layers.png"),
        enface=result("volumes/{volume}/enface.png"),
    log:
        f"{LOCAL}/logs/qc_pictures/{{volume}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/qc_pictures/{{volume}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=10,
    params:
        code=code_version("preprocessing.qc_pictures"),
    shell:
        "python -m preprocessing qc_pictures --input {input.image:q} --layers {input.layers:q}"
        " --qc {input.table:q} --picture {output.picture:q} --enface {output.enface:q}"
        " > {log:q} 2>&1"


rule patches:
    input:
        **flat_files(),
    output:
        result("patches/{part}.h5"),
    log:
        f"{LOCAL}/logs/patches/{{part}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/patches/{{part}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=120,
    params:
        code=code_version("preprocessing.patches"),
        labels=lambda wildcards: [SHEET[volume].label for volume in volumes_of_part(wildcards.part)],
        split=lambda wildcards: split_of(wildcards.part),
        amount=lambda wildcards: patch_count(split_of(wildcards.part)),
        quality=quality_option,
        leave_out=config["patches"]["leave_out_bscans"],
        size=config["patches"]["size"],
        anomalous_fraction=config["patches"]["anomalous_fraction"],
        seed=config["seed"],
    shell:
        "python -m preprocessing patches --inputs {input.images:q} --labels {params.labels}"
        " {params.quality} --leave-out {params.leave_out}"
        " --split {params.split} {params.amount} --size {params.size}"
        " --anomalous-fraction {params.anomalous_fraction} --seed {params.seed}"
        " --output {output:q} > {log:q} 2>&1"
