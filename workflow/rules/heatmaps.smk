# Where the anomalies are: maps of overlapping patches, and the same on the scans as loaded.


rule heatmap:
    input:
        **flat_files(),
        description=model_file("model.json"),
        weights=model_file("weights.safetensors"),
    output:
        result("heatmaps/{method}/{part}.h5"),
    log:
        f"{LOCAL}/logs/heatmap/{{method}}/{{part}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/heatmap/{{method}}/{{part}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: 8 if searches(wildcards.method) else 1
    resources:
        gpu=min(1, config["gpus"]),
        mem_mb=memory(4000),
        runtime=1440,
    params:
        code=code_version("anogan.heatmap"),
        of_method=lambda wildcards: code_version(f"anogan.methods.{wildcards.method}"),
        labels=lambda wildcards: [SHEET[volume].label for volume in volumes_of_part(wildcards.part)],
        split=lambda wildcards: split_of(wildcards.part),
        quality=quality_option,
        leave_out=config["patches"]["leave_out_bscans"],
        stride=round(config["patches"]["size"] * (1 - config["heatmap"]["overlap"])),
        options=lambda wildcards: score_options(config, wildcards.method),
        folder=subpath(input.description, parent=True),
    shell:
        "python -m anogan heatmap --inputs {input.images:q} --labels {params.labels}"
        " {params.quality} --leave-out {params.leave_out} --split {params.split}"
        " --model {params.folder:q} --method {wildcards.method} --stride {params.stride}"
        " {params.options} --threads {threads} --gpus {resources.gpu} --output {output:q}"
        " > {log:q} 2>&1"


rule heat_scale:
    input:
        maps_of_scale,
    output:
        result("heatmaps/{method}/scale.json"),
    log:
        f"{LOCAL}/logs/heat_scale/{{method}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/heat_scale/{{method}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        code=code_version("anogan.heat_scale"),
    shell:
        "python -m anogan heat_scale --maps {input:q} --output {output:q} > {log:q} 2>&1"


rule overlay:
    input:
        **volume_files("volume"),
        maps=maps_of_volume,
        scales=result("heatmaps/{method}/scale.json", method=MAPPED_METHODS),
        geometry=rules.prepare.output.geometry,
    output:
        result_folder("overlays/{volume}"),
    log:
        f"{LOCAL}/logs/overlay/{{volume}}.log",
    benchmark:
        f"{LOCAL}/benchmarks/overlay/{{volume}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        code=code_version("anogan.overlay"),
        viewer_method=HEADLINE if HEADLINE in MAPPED_METHODS else MAPPED_METHODS[:1],
    shell:
        "python -m anogan overlay --maps {input.maps:q} --scales {input.scales:q}"
        " --volume-image {input.image:q} --geometry {input.geometry:q}"
        " --viewer-method {params.viewer_method} --output {output:q} > {log:q} 2>&1"
