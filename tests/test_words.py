"""Names, errors, settings, catalogue: the words everything else is written in."""

import pytest

from sarto import errors, names
from sarto.catalog import DIGEST_FILE, Catalog
from sarto.settings import load


def test_a_resource_name_is_parsed_and_formatted_back():
    text = "projects/demo/locations/us-central1/tuningJobs/123"
    name = names.parse_resource(text, "tuningJobs")
    assert (name.project, name.location, name.id, str(name)) == ("demo", "us-central1", "123", text)


def test_a_version_is_split_only_where_it_may_stand():
    name = names.parse_resource("projects/1/locations/eu/models/9@2", "models", versioned=True)
    assert (name.id, name.version) == ("9", "2")
    with pytest.raises(errors.InvalidArgument):
        names.parse_resource("projects/1/locations/eu/tuningJobs/9@2", "tuningJobs")


@pytest.mark.parametrize("bad", ["a:b", "a/b", "..", "a..b", "", "x" * 129, "a b", "é", "-a", "a\n"])
def test_an_id_from_outside_cannot_leave_its_place(bad):
    with pytest.raises(errors.InvalidArgument):
        names.parse_resource(f"projects/demo/locations/us-central1/tuningJobs/{bad}", "tuningJobs")


def test_an_unknown_location_is_refused_and_the_wildcard_only_taken_in_lists():
    with pytest.raises(errors.InvalidArgument, match="mars"):
        names.parse_location("projects/demo/locations/mars")
    with pytest.raises(errors.InvalidArgument):
        names.parse_location("projects/demo/locations/-")
    assert names.parse_location("projects/demo/locations/-", wildcard=True).location == "-"


def test_every_region_the_official_client_knows_is_a_location():
    from google.cloud.aiplatform import constants

    assert set(constants.base.SUPPORTED_REGIONS) <= names.REGIONS


def test_ids_are_19_digits_and_grow():
    first, second = names.new_id(), names.new_id()
    assert len(first) == 19 and first.isdigit() and int(first) // 1000 <= int(second) // 1000


def test_every_rpc_code_comes_back_from_its_status():
    for kind in errors.BY_CODE.values():
        assert type(errors.from_status(kind("why").to_status())) is kind


def test_violations_are_numbered_and_carried_as_bad_request():
    error = errors.InvalidArgument.of([errors.FieldViolation("a.b", "bad"), errors.FieldViolation("c", "worse")])
    assert "1.Field: a.b; Message: bad" in error.message and "2.Field: c" in error.message
    assert error.details[0]["fieldViolations"][1] == {"field": "c", "description": "worse"}


def test_settings_come_from_file_then_environment_then_caller(tmp_path):
    (tmp_path / "config.toml").write_text('port = 1\nhost = "0.0.0.0"\nthreads = 1\n')
    settings = load(tmp_path, {"SARTO_PORT": "2", "SARTO_THREADS": "2"}, threads=3)
    assert (settings.host, settings.port, settings.limits.threads) == ("0.0.0.0", 2, 3)


def test_an_unknown_setting_is_refused_by_name(tmp_path):
    (tmp_path / "config.toml").write_text("prot = 1\n")
    with pytest.raises(errors.InvalidArgument, match="prot"):
        load(tmp_path, {})


def test_an_unknown_model_names_the_known_ones(tmp_path):
    catalog = Catalog.load(models_folder=tmp_path)
    with pytest.raises(errors.InvalidArgument, match=r"gemini-2\.5-flash"):
        catalog.find("gemini-2.5-flsh")


def test_models_are_found_in_every_spelling(tmp_path):
    catalog = Catalog.load(models_folder=tmp_path)
    for name in ("gemini-2.5-flash", "publishers/google/models/gemini-2.5-flash", "models/gemini-2.5-flash"):
        assert catalog.find(name).name == "gemini-2.5-flash"
    assert catalog.find("publishers/google/models/gemma3@gemma-3-1b-it").weights.id == "gemma-3-1b-it"


def test_missing_weights_name_the_command_that_gets_them(tmp_path):
    catalog = Catalog.load(models_folder=tmp_path)
    weights = catalog.find("gemini-2.5-flash").weights
    with pytest.raises(errors.FailedPrecondition, match="sarto models pull smollm2-135m-instruct"):
        catalog.base(weights)
    catalog.folder(weights).mkdir()
    (catalog.folder(weights) / DIGEST_FILE).write_text("ab")
    assert catalog.base(weights).digest == "ab"


def test_a_homes_catalog_wins_over_the_shipped_one(tmp_path):
    (tmp_path / "catalog.toml").write_text(
        '[[weights]]\nid = "own"\ntitle = "Own"\nfamily = "llama"\nlicense = "x"\ncontext = 1\nlearning_rate = 1.0\n'
        '[[model]]\nnames = ["gemini-2.5-flash"]\nweights = "own"\nadapter_sizes = [4]\ndefault_adapter_size = 4\n'
    )
    assert Catalog.load(tmp_path, tmp_path).find("gemini-2.5-flash").weights.id == "own"
