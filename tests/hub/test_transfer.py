"""Push, pull, load: the same scores bit for bit; nothing else goes up, nothing harmful comes down, no half folder."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import m6rec
from m6rec.assemble import train_run
from m6rec.backbones.resolve import resolve_backbone
from m6rec.errors import HubAccessError, HubConnectionError, HubError, HubNameError, M6RecError, RunError
from m6rec.hub.transfer import locate, prepare, pull, push
from m6rec.recipe import read_recipe
from tests.contracts.backbone_contract import close, plain_batch
from tests.hub_server import READ, Model
from tests.little_shop import SMALL

HISTORY, CANDIDATES = "red shirt; blue lamp", ["g03", "winter phone", {"title": "summer film", "brand": "warm"}]


@pytest.fixture
def pushed(hub, ranking_run):
    """Return the newest files of ``me/ranker`` on the Hub, a ranking run; they may be changed."""
    push(ranking_run, "me/ranker", base="me/tiny")
    hub.requests.clear()
    return hub.models["me/ranker"].commits[-1][1]


def change(files, name, old, new):
    assert old in files[name]
    files[name] = files[name].replace(old, new)


class TestRoundTrip:
    def test_ranking_gives_the_same_scores_bit_for_bit(self, hub, ranking_run):
        ours = m6rec.load(ranking_run)
        address = ours.push_to_hub("me/ranker", base="me/tiny")
        assert address.startswith(f"{hub.url}/me/ranker/commit/")
        assert m6rec.load("me/ranker").rank(HISTORY, CANDIDATES) == ours.rank(HISTORY, CANDIDATES)

    def test_retrieval_gives_the_same_scores_bit_for_bit(self, hub, retrieval_run, tmp_path):
        push(retrieval_run, "me/shop", base="me/tiny")
        folder = pull("me/shop", tmp_path / "theirs")
        assert folder == tmp_path / "theirs"
        assert m6rec.load(folder).recommend(HISTORY, 36) == m6rec.load(retrieval_run).recommend(HISTORY, 36)

    @pytest.mark.parametrize("tuner", ["full", "option-adapter"])
    def test_what_peft_cannot_read_gives_the_same_scores_too(self, hub, shop, tiny_folder, tmp_path, tuner):
        words = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", f"tuner.name={tuner}"]
        train_run(read_recipe("ranking", [*words, *SMALL["ranking"]]))
        push(tmp_path / "run", "me/other", base="me/tiny")
        assert b"PeftModel" not in hub.models["me/other"].commits[-1][1]["README.md"]
        assert m6rec.load("me/other").rank(HISTORY, CANDIDATES) == m6rec.load(tmp_path / "run").rank(
            HISTORY, CANDIDATES
        )

    def test_what_was_pulled_can_be_pushed_again(self, hub, pushed):
        push("me/ranker", "me/again")
        again = hub.models["me/again"].commits[-1][1]
        assert set(again) == set(pushed)
        same = [name for name in pushed if again[name] == pushed[name]]
        assert set(pushed) - set(same) <= {"README.md", "recipe.yaml"}  # they name where they lie

    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
    def test_plain_peft_loads_the_adapter(self, hub, pushed, tiny_folder, ranking_run):
        import peft
        from transformers import AutoModel

        batch = plain_batch([7, 8, 9, 10, 11])
        backbone = m6rec.load(ranking_run).run.backbone
        for place in (pull("me/ranker"), "me/ranker"):
            plain = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_folder), place).eval()
            with torch.no_grad():
                theirs = plain(input_ids=batch.ids, attention_mask=batch.keep.long()).last_hidden_state
                close(backbone(batch), theirs)

    def test_a_backbone_in_memory_serves_it(self, hub, pushed, tiny_folder):
        base = resolve_backbone(tiny_folder)
        hub.models.pop("me/tiny")
        own = {weight.data_ptr() for weight in base.model.parameters()}
        assert own < {weight.data_ptr() for weight in m6rec.load("me/ranker", backbone=base).run.backbone.parameters()}


class TestPush:
    def test_one_commit_with_nothing_that_is_not_needed(self, hub, pushed, shop, ranking_run):
        assert len(hub.models["me/ranker"].commits) == 2  # the empty one first
        assert set(pushed) == {
            ".gitattributes",
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "control_tokens.safetensors",
            "recipe.yaml",
            "run.json",
            "task/catalogue/items.parquet",
            "task/heads.json",
            "task/heads.safetensors",
            "templates/data_templates/default.yaml",
            "templates/prompts/ranking.yaml",
        }
        places = [str(place).encode() for place in (shop, ranking_run, Path.home(), shop.parents[1])]
        assert not [name for name, content in pushed.items() for place in places if place in content]

    def test_a_second_push_takes_what_the_first_one_left(self, hub, pushed, ranking_run):
        extra = {"LICENSE": b"mine", "task/old.safetensors": b"", "model.safetensors": b""}
        hub.models["me/ranker"].add({**pushed, **extra})
        push(ranking_run, "me/ranker", base="me/tiny")
        assert set(hub.models["me/ranker"].commits[-1][1]) == {*pushed, "LICENSE"}

    def test_a_private_model(self, hub, ranking_run, monkeypatch):
        push(ranking_run, "me/secret", base="me/tiny", private=True)
        assert hub.models["me/secret"].private
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubNameError, match="or it is private; check the name, or log in"):
            pull("me/secret")

    def test_a_base_model_that_nobody_else_has(self, hub, ranking_run):
        with pytest.raises(HubError, match="--base OWNER/NAME"):
            push(ranking_run, "me/ranker")
        with pytest.raises(HubError, match="--base OWNER/NAME"):
            push(ranking_run, "me/ranker", base="./here")
        assert not hub.requests

    @pytest.mark.parametrize(
        "name", ["shop", "me/shop/two", "me /shop", "me/shop@", "", "../shop", "https://hf.co/me/shop"]
    )
    def test_a_name_that_cannot_be(self, hub, ranking_run, name):
        for act in (lambda: push(ranking_run, name, base="me/tiny"), lambda: pull(name)):
            with pytest.raises(HubError, match="expected OWNER/NAME"):
                act()

    @pytest.mark.parametrize("place", ["task/extra.pkl", "adapter/code.py"])
    def test_a_file_that_would_have_to_be_executed(self, hub, ranking_run, tmp_path, place):
        run = Path(shutil.copytree(ranking_run, tmp_path / "run"))
        (run / place).write_bytes(b"x")
        with pytest.raises(HubError, match="save tensors as safetensors"):
            push(run, "me/ranker", base="me/tiny")

    def test_no_place_of_this_machine_goes_along(self, ranking_run, tmp_path):
        run = Path(shutil.copytree(ranking_run, tmp_path / "run"))
        tree = yaml.safe_load((run / "recipe.yaml").read_text())
        tree |= {"start": "/home/me/run", "domain": "/home/me/goods.yaml"}
        tree["task"]["prompt"], tree["tuner"]["start"] = "/home/me/ask.yaml", {"adapter": "/home/me/run/adapter"}
        (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
        prepare(run, tmp_path / "look", "me/ranker", base="me/tiny")
        staged = yaml.safe_load((tmp_path / "look" / "recipe.yaml").read_text())
        assert (staged["domain"], staged["task"]["prompt"], staged["data"], staged["out"]) == (
            "goods",
            "ask",
            "csv",
            "run",
        )
        assert "/home/me" not in (tmp_path / "look" / "recipe.yaml").read_text()

    def test_no_run_there(self, hub, tmp_path):
        with pytest.raises(RunError, match="no run folder"):
            push(tmp_path / "nothing", "me/ranker")

    def test_a_look_at_it_first(self, ranking_run, tmp_path):
        prepare(ranking_run, tmp_path / "look", "me/ranker", base="me/tiny")
        assert (tmp_path / "look" / "README.md").read_text().startswith("---\nbase_model: me/tiny\n")
        with pytest.raises(HubError, match="holds something already"):
            prepare(ranking_run, tmp_path / "look", "me/ranker", base="me/tiny")

    def test_a_look_that_fails_leaves_nothing(self, ranking_run, tmp_path):
        with pytest.raises(HubError, match="expected OWNER/NAME"):
            prepare(ranking_run, tmp_path / "look", "my ranker", base="me/tiny")
        run = Path(shutil.copytree(ranking_run, tmp_path / "run"))
        (run / "task" / "extra.pkl").write_bytes(b"x")
        with pytest.raises(HubError, match="save tensors as safetensors"):
            prepare(run, tmp_path / "look", "me/ranker", base="me/tiny")
        assert not (tmp_path / "look").exists()


class TestWithoutCatalogue:
    def test_no_item_goes_along_and_new_ones_are_known_by_their_text(self, hub, retrieval_run):
        push(retrieval_run, "me/shop", base="me/tiny", catalogue=False)
        files = hub.models["me/shop"].commits[-1][1]
        assert not [name for name, content in files.items() if b"red shirt" in content or b"g17" in content]
        assert b"the catalogue was left out" in files["README.md"]
        rec = m6rec.load("me/shop")
        assert (len(rec.catalog), rec.recommend(HISTORY)) == (0, [])
        goods = ["red shirt", "blue lamp", "green chair"]
        rec.catalog.add([{"id": str(place), "title": title} for place, title in enumerate(goods)])
        assert {item.title for item in rec.recommend("winter book", k=5)} == set(goods)

    def test_a_ranker_orders_what_it_is_told(self, hub, ranking_run):
        push(ranking_run, "me/ranker", base="me/tiny", catalogue=False)
        found = m6rec.load("me/ranker").rank("red shirt", [{"title": "blue lamp"}, "green chair"])
        assert {item.title for item in found} == {"blue lamp", "green chair"}


class TestPull:
    def test_what_is_there_is_not_got_again(self, hub, pushed):
        folder = pull("me/ranker")
        hub.requests.clear()
        assert pull("me/ranker") == folder
        assert hub.requests == ["GET /api/models/me/ranker/revision/main"]

    def test_a_revision(self, hub, pushed, ranking_run):
        first = hub.models["me/ranker"].commits[-1][0]
        change(pushed, "README.md", b"# me/ranker", b"# old")
        hub.models["me/ranker"].add({**pushed, "README.md": pushed["README.md"].replace(b"# old", b"# new")})
        assert "# new" in (pull("me/ranker") / "README.md").read_text()
        assert "# old" in (pull(f"me/ranker@{first}") / "README.md").read_text()
        with pytest.raises(HubNameError, match="no such revision"):
            pull("me/ranker@v7")

    def test_a_transfer_that_breaks_off_goes_on_where_it_was(self, hub, pushed, tmp_path):
        hub.missing = {"task/heads.safetensors"}
        with pytest.raises(HubError, match="answers 404"):
            pull("me/ranker", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (partial,) = tmp_path.glob(".out-*.partial")
        arrived = {str(path.relative_to(partial)) for path in partial.rglob("*") if ".cache" not in path.parts}
        hub.missing.clear()
        hub.requests.clear()
        pull("me/ranker", tmp_path / "out")
        asked = {request.partition("/resolve/")[2].partition("/")[2] for request in hub.requests}
        assert "task/heads.safetensors" in asked
        assert not asked & arrived
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
        assert not (tmp_path / "out" / ".cache").exists()

    def test_a_connection_that_breaks_off_inside_a_file(self, hub, pushed, tmp_path):
        hub.break_off = {"task/heads.safetensors": 1000}
        folder = pull("me/ranker", tmp_path / "out")
        assert (folder / "task" / "heads.safetensors").read_bytes() == pushed["task/heads.safetensors"]

    def test_files_of_the_owners_own_stay_there(self, hub, pushed, tmp_path):
        pushed |= {"LICENSE": b"mine", "picture.png": b"", ".hidden.json": b"{}"}
        assert {path.name for path in pull("me/ranker", tmp_path / "out").iterdir()}.isdisjoint(
            {"LICENSE", "picture.png", ".hidden.json", ".gitattributes"}
        )

    @pytest.mark.parametrize(
        "name", ["adapter_model.bin", "task/heads.PT", "x.pkl", "modeling.py", "../up.json", "/etc/x.json", "a\\b.json"]
    )
    def test_files_that_nobody_should_trust(self, hub, pushed, tmp_path, name):
        pushed[name] = b"boo"
        with pytest.raises(HubError, match="do not load it"):
            pull("me/ranker", tmp_path / "out")
        assert not [request for request in hub.requests if "resolve" in request]

    def test_the_folder_is_taken(self, hub, pushed, tmp_path):
        (tmp_path / "out").mkdir()
        pull("me/ranker", tmp_path / "out")
        hub.requests.clear()
        with pytest.raises(HubError, match="holds something already"):
            pull("me/ranker", tmp_path / "out")
        with pytest.raises(HubError, match=r"got the folder '\.', expected a new one"):
            pull("me/ranker", ".")
        assert not hub.requests

    def test_something_else_than_a_run(self, hub, tmp_path):
        with pytest.raises(RunError, match=r"no run\.json"):
            pull("me/tiny", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))


class TestLies:
    """Files that say other things of the base model than they should: refused, and nothing stays behind."""

    @pytest.mark.parametrize("file", ["README.md", "run.json", "recipe.yaml", "adapter_config.json"])
    def test_one_file_names_another_base_model(self, hub, pushed, tmp_path, file):
        change(pushed, file, b"me/tiny", b"me/huge")
        with pytest.raises(HubError, match=r"one of them lies.*me/huge"):
            pull("me/ranker", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))

    @pytest.mark.parametrize("file", ["README.md", "run.json", "control_tokens.safetensors"])
    def test_one_file_names_other_weights(self, hub, pushed, file):
        weights = yaml.safe_load(pushed["README.md"].split(b"---")[1])["m6rec"]["base_fingerprint"].encode()
        change(pushed, file, weights, weights[::-1])
        with pytest.raises(HubError, match="one of them lies"):
            pull("me/ranker")

    def test_all_files_name_another_base_model(self, hub, pushed, tmp_path):
        for file in ("README.md", "run.json", "recipe.yaml", "adapter_config.json"):
            change(pushed, file, b"me/tiny", b"me/huge")
        other = dict(hub.models["me/tiny"].commits[-1][1])
        content = bytearray(other["model.safetensors"])
        content[-1] ^= 1
        hub.models["me/huge"] = Model()
        hub.models["me/huge"].add({**other, "model.safetensors": bytes(content)})
        with pytest.raises(RunError, match="other weights of 'me/huge'"):
            m6rec.load("me/ranker")

    def test_a_base_model_on_this_machine(self, hub, pushed):
        for file in ("README.md", "run.json", "recipe.yaml", "adapter_config.json"):
            change(pushed, file, b"me/tiny", b"/etc/it")
        with pytest.raises(HubError, match="expected a Hub id"):
            pull("me/ranker")

    @pytest.mark.parametrize("card", [b"", b"no metadata", b"---\n- a list\n---\n", b"---\n{\n---\n"])
    def test_no_card(self, hub, pushed, card):
        pushed["README.md"] = card
        with pytest.raises(HubError, match="expected a model card"):
            pull("me/ranker")

    @pytest.mark.parametrize(
        "file", ["adapter_model.safetensors", "control_tokens.safetensors", "task/heads.safetensors"]
    )
    def test_a_truncated_file(self, hub, pushed, tmp_path, file):
        pushed[file] = pushed[file][:-7]
        with pytest.raises(M6RecError, match="damaged"):
            pull("me/ranker", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))

    def test_an_unknown_tuner(self, hub, pushed):
        change(pushed, "adapter_config.json", b'"LORA"', b'"LORRA"')
        with pytest.raises(M6RecError, match="LORRA"):
            m6rec.load("me/ranker")


class TestRefusals:
    """Every way to be refused has an error of its own that says what to do, at once."""

    def test_no_such_model(self, hub):
        with pytest.raises(HubNameError, match="the Hub has no model me/nothing"):
            pull("me/nothing")

    def test_no_token(self, hub, ranking_run, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubAccessError, match=r"\(401\); log in with `hf auth login`"):
            push(ranking_run, "me/ranker", base="me/tiny")

    def test_a_token_that_may_only_read(self, hub, pushed, ranking_run):
        for name in ("me/ranker", "me/new"):
            with pytest.raises(HubAccessError, match=r"\(403\)"):
                push(ranking_run, name, base="me/tiny", token=READ)

    def test_a_model_with_a_gate(self, hub, pushed):
        hub.models["me/ranker"].gated = True
        with pytest.raises(HubAccessError, match="ask on its page"):
            pull("me/ranker")

    def test_a_hub_out_of_order(self, hub, ranking_run):
        hub.failing = 503
        for act in (lambda: pull("me/ranker"), lambda: push(ranking_run, "me/ranker", base="me/tiny")):
            with pytest.raises(HubError, match="answers 503"):
                act()
        assert len([request for request in hub.requests if "agent" not in request]) == 2

    def test_no_network(self, hub, ranking_run, monkeypatch):
        hub.close()
        slept = []
        monkeypatch.setattr("time.sleep", slept.append)
        for act in (lambda: pull("me/ranker"), lambda: push(ranking_run, "me/ranker", base="me/tiny")):
            with pytest.raises(HubConnectionError, match="check the network"):
                act()
        assert not slept  # the client's own retries take 25 seconds

    def test_offline_on_purpose(self, hub, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubConnectionError, match="HF_HUB_OFFLINE is set; unset it"):
            pull("me/ranker")

    def test_what_was_pulled_before_answers_without_a_network(self, hub, pushed, caplog):
        folder = pull("me/ranker")
        hub.close()
        with caplog.at_level(logging.WARNING):
            assert locate("me/ranker") == folder
        assert "using the copy of me/ranker" in caplog.text

    def test_neither_a_folder_nor_a_name(self, hub):
        with pytest.raises(
            HubNameError, match="no run folder at runs/nothing, and as a name on the Hub: the Hub has no"
        ):
            m6rec.load("runs/nothing")
        with pytest.raises(RunError, match="no run folder at nothing"):
            m6rec.load("nothing")
