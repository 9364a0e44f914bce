"""Graphs of an item: orders by layer, a hypernetwork that learns, steps on an item's own parameters alone."""

import copy

import pytest
import torch
from torch.nn import functional as F

from m6rec.coldstart.item_graph import GraphNetwork, ItemGraph, ItemGraphConfig, LinearReadout, higher_orders
from m6rec.coldstart.item_net import adapt
from m6rec.coldstart.item_tasks import ItemTasks
from m6rec.coldstart.item_training import LearnConfig, draws, from_tasks
from tests.coldstart.item_toy import USERS, toy

TINY = ItemGraphConfig(width=4, num_layers=2)


def net_of(cutter, **settings) -> ItemGraph:
    torch.manual_seed(0)
    net = ItemGraph(cutter.facts, USERS, ItemGraphConfig(**{**vars(TINY), **settings}))
    with torch.no_grad():  # an ordinary start is so small that products of fields vanish
        for parameter in net.fields.parameters():
            parameter.normal_(std=0.5)
    return net


def one_draw(cutter, num_items: int = 4) -> tuple[ItemTasks, ItemTasks]:
    return next(draws(cutter, LearnConfig(num_items=num_items, num_queries=5)))


def test_states_behind_layer_l_are_products_of_l_plus_one_fields() -> None:
    torch.manual_seed(0)
    network, graphs = GraphNetwork(4, 3), higher_orders(torch.randn(2, 5, 5), 3)
    fields = torch.randn(2, 3, 5, 4)
    for order, (once, twice) in enumerate(zip(network(fields, graphs), network(2 * fields, graphs), strict=True), 1):
        torch.testing.assert_close(twice, 2**order * once)


@pytest.mark.parametrize(("num_layers", "learnt"), [(2, True), (1, False)])
def test_a_planted_third_order_interaction_wants_three_orders_of_states(num_layers: int, learnt: bool) -> None:
    """A yes is an even number of three fields: no two of them say anything.

    Two layers hold states of the orders one to three and learn it, one layer, orders one and two, cannot.
    """
    torch.manual_seed(0)
    cases = torch.cartesian_prod(*[torch.arange(2)] * 3)
    labels = (cases.sum(1) % 2 == 0).float()
    tables = torch.nn.Parameter(torch.randn(3, 2, 4))
    network, readout = GraphNetwork(4, num_layers), LinearReadout(3, 4, num_layers)
    graphs = higher_orders(torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]), num_layers)
    optimizer = torch.optim.Adam([tables, *network.parameters(), *readout.parameters()], lr=0.03)
    for _ in range(300):
        fields = tables[torch.arange(3), cases][None]
        loss = F.binary_cross_entropy_with_logits(readout(network(fields, graphs))[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (loss.item() < 0.1) == learnt
    assert learnt or loss.item() > 0.69  # no better than chance


def test_higher_orders_are_symmetric_at_first_within_bounds_and_stay_on_the_first_edges() -> None:
    graphs = higher_orders(torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(2)), 3)
    torch.testing.assert_close(graphs[0], graphs[0].transpose(1, 2))
    for graph in graphs:
        assert graph.min() >= 0
        assert graph.max() <= 1 + 1e-6
        assert not graph[graphs[0] == 0].any()
    assert (graphs[0] == 0).any()  # the weaker half is gone
    assert (graphs[0].diagonal(dim1=1, dim2=2) == 1).all()


def test_the_hypernetwork_gets_a_gradient_and_moves_and_the_published_one_does_not() -> None:
    cutter = toy(texts=False)
    for graph, moves in (("made", True), ("untrained", False)):
        net = net_of(cutter, graph=graph)
        before = copy.deepcopy(net.maker.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        from_tasks(net, LearnConfig())(*one_draw(cutter)).backward()
        gradients = [parameter.grad for parameter in net.maker.parameters()]
        assert (sum(float(g.norm()) for g in gradients if g is not None) > 0) == moves
        optimizer.step()
        assert any(not torch.equal(value, before[name]) for name, value in net.maker.state_dict().items()) == moves


def test_inner_steps_move_each_item_s_own_parameters_and_nothing_else() -> None:
    cutter = toy()
    net, (known, _) = net_of(cutter), one_draw(cutter)
    before, start = copy.deepcopy(net.state_dict()), net.start(known.items)
    kept = {name: value.detach().clone() for name, value in start.items()}
    later = adapt(net, start, known, steps=3, rate=0.5)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(torch.equal(start[name], kept[name]) for name in kept)  # fast weights never overwrite where they began
    has_any = known.keep.any(1)
    assert has_any.any()
    for name, value in later.items():
        assert value.shape == start[name].shape
        moved = (value != kept[name]).flatten(1).any(1)
        assert torch.equal(moved, has_any), name


def test_items_adapted_together_equal_each_alone() -> None:
    cutter = toy()
    net, (known, asked) = net_of(cutter), one_draw(cutter)
    with torch.no_grad():
        together = net(asked, adapt(net, net.start(known.items), known, 3, 0.5))
        for row in range(len(known.items)):
            one, questions = (
                ItemTasks(**{name: value[row : row + 1] for name, value in vars(tasks).items()})
                for tasks in (known, asked)
            )
            alone = net(questions, adapt(net, net.start(one.items), one, 3, 0.5))
            torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("second_order", [True, False])
def test_second_order_is_the_slope_of_the_loss_behind_the_steps(second_order: bool) -> None:
    cutter = toy()
    net = net_of(cutter, readout="linear").double()
    known, asked = (
        ItemTasks(**{n: v.double() if v.is_floating_point() else v for n, v in vars(tasks).items()})
        for tasks in one_draw(cutter)
    )
    step = from_tasks(net, LearnConfig(inner_steps=2, inner_lr=0.5, second_order=second_order, support_weight=0.0))
    # A weight that the made graph goes through, and one that every step does.
    for weight in (net.maker.rows[0][4].bias, net.network.maps[0].weight):
        net.zero_grad()
        step(known, asked).backward()
        place = weight.grad.abs().flatten().argmax()
        found, losses = weight.grad.flatten()[place].item(), []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight.view(-1)[place] += shift
            losses.append(step(known, asked).item())
            with torch.no_grad():
                weight.view(-1)[place] -= shift
        slope = (losses[0] - losses[1]) / 2e-5
        assert (found == pytest.approx(slope, rel=1e-4)) == second_order


def test_one_graph_for_all_is_one_and_texts_make_another_for_each() -> None:
    cutter = toy()
    items = torch.tensor([0, 1, 2])
    common = net_of(cutter, graph="global").start(items)["graph"]
    assert torch.equal(common[0], common[1])
    net = net_of(cutter)
    made = net.start(items)["graph"]
    assert not torch.equal(made[0], made[1])
    assert made.shape == (3, len(net.fields), len(net.fields))
    assert net.fields.names == ("user", "item", "genre", "year", "text", "taste")
