# Marker discovery: the most anomalous regions of the shown volumes, grouped by what D sees in them.
# It needs heat maps and a GAN; without them there is none.

from planning.markers import marker_method

try:
    MARKER_METHOD = marker_method(config, MAPPED_METHODS, HEADLINE, MODELS)
except PlanningError as error:
    raise WorkflowError(str(error)) from None

MARKERS = [result("markers")] if MARKER_METHOD else []
COMPANIONS = ("valid.nii.gz", "annotation.nii.gz", "vendor.npz", "json")  # of a volume's image

if MARKER_METHOD:

    rule markers:
        input:
            maps=maps_of(MARKER_METHOD, SCORED_SPLITS),
            flats=files_of("flat", "nii.gz", SCORED_SPLITS),
            flat_companions=files_of("flat", [*COMPANIONS, "geometry.npz"], SCORED_SPLITS),
            images=files_of("volume", "nii.gz", SHOWN_SPLITS),
            companions=files_of("volume", COMPANIONS, SHOWN_SPLITS),
            description=at(f"{model_folder('gan')}/model.json"),
            weights=at(f"{model_folder('gan')}/weights.safetensors"),
        output:
            result_folder("markers"),
        log:
            f"{LOCAL}/logs/markers.log",
        benchmark:
            f"{LOCAL}/benchmarks/markers.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=memory(4000),
            runtime=120,
        params:
            code=code_version("anogan.markers"),
            folder=subpath(input.description, parent=True),
            settings=config["markers"],
            bootstrap=config["evaluate"]["bootstrap"],
            seed=config["seed"],
        shell:
            "python -m anogan markers --maps {input.maps:q} --flats {input.flats:q}"
            " --images {input.images:q} --model {params.folder:q}"
            " --regions-per-volume {params.settings[regions_per_volume]}"
            " --clusters {params.settings[clusters]} --quantile {params.settings[quantile]}"
            " --smallest-um2 {params.settings[smallest_um2]} --bootstrap {params.bootstrap}"
            " --seed {params.seed} --threads {threads} --output {output:q} > {log:q} 2>&1"
