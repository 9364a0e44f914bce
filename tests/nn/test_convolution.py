import torch
import torch.nn.functional as F

from m6rec.nn.convolution import DilatedBlock, DilatedConvolution


def test_equals_the_librarys_convolution():
    ours, x = DilatedConvolution(5, kernel_size=3, dilation=4), torch.randn(2, 11, 5)
    kernel = ours.taps.weight.view(5, 3, 5).transpose(1, 2)  # out, tap, in -> out, in, tap
    padded = F.pad(x.transpose(1, 2), (8, 0))
    theirs = F.conv1d(padded, kernel, ours.taps.bias, dilation=4).transpose(1, 2)
    torch.testing.assert_close(ours(x), theirs)


def test_a_slot_sees_itself_and_the_slots_a_dilation_before():
    layer, x = DilatedConvolution(3, kernel_size=3, dilation=2), torch.randn(1, 9, 3)
    for changed in range(9):
        other = x.clone()
        other[0, changed] += 1
        differs = (layer(x) != layer(other)).any(-1)[0].nonzero().flatten().tolist()
        assert differs == [slot for slot in (changed, changed + 2, changed + 4) if slot < 9]


def test_the_block_is_the_papers():
    block, x = DilatedBlock(4, kernel_size=3, dilation=1, dropout=0.5).eval(), torch.randn(2, 7, 4)
    inner = F.relu(F.layer_norm(block.first(x), (4,), eps=1e-8))
    expected = x + F.relu(F.layer_norm(block.second(inner), (4,), eps=1e-8))
    torch.testing.assert_close(block(x), expected)
    assert (block.first.dilation, block.second.dilation) == (1, 2)


def test_an_empty_sequence_stays_empty():
    assert DilatedBlock(4, 3, 1, 0.0)(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
