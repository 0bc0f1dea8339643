"""Counts what the network of an option file has and costs.

    udl complexity options/train_EDSR_UDL_x4.yml udl:EDSR-S_UDL_x4
    udl complexity options/train_EDSR_UDL_x4.yml --size 1080 1920 --run_time
"""
from __future__ import annotations

from udl_basicsr.training.arguments import option_file
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, whole


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description='Counts the parameters of networks, and the multiply-accumulate '
                                     'operations of one HR image, as the papers do.')
    parser.add_argument('files', nargs='+', type=option_file, metavar='FILE', help='option files with network_g and '
                        'scale, or udl:NAME')
    parser.add_argument('--size', nargs=2, type=whole(8), default=(720, 1280), metavar=('HEIGHT', 'WIDTH'),
                        help='of the HR image; default 720 1280')
    parser.add_argument('--run_time', action='store_true', help='measure the time too, in float32 on this machine')
    args = parser.parse_args(argv)
    import udl_basicsr.register  # noqa: F401 - networks by their names
    from udl_basicsr.experiments.complexity import count_macs, run_time
    from udl_basicsr.experiments.printed import format_amount
    from udl_basicsr.options.keys import lookup
    from udl_basicsr.options.network_values import check_networks
    from udl_basicsr.options.schema import COUNT
    from udl_basicsr.options.trials import build_network
    from udl_basicsr.utils.tables import text_table
    from udl_basicsr.utils.text import kind_and_line
    from udl_basicsr.utils.yaml_files import OptionError, load_yaml

    rows = []
    for file in args.files:
        opt = load_yaml(file)
        scale, block = opt.get('scale'), opt.get('network_g')
        if not isinstance(scale, int) or not COUNT.accepts(scale) or not isinstance(block, dict):
            raise OptionError([f'{file}: expected scale, {COUNT.label}, and network_g'])
        check_networks(opt, file)
        network = build_network(lookup('network', block['type']), block)
        if isinstance(network, str):
            raise OptionError([f'{file}: network_g: {network}'])
        cells = [file, str(block['type']), f'×{scale}',
                 format_amount('parameters', sum(p.numel() for p in network.parameters()))]
        for cost, measure in (('macs', count_macs), ('runtime', run_time))[:1 + args.run_time]:
            try:
                cells.append(format_amount(cost, measure(block, scale, args.size)))
            except Exception as error:  # of a network that looks at values, or takes no image of that size
                size = ' x '.join(map(str, args.size))
                raise OptionError([f'{file}: network_g: the {cost} of {block["type"]} for an image of {size} cannot be '
                                   f'told: {kind_and_line(error)}; another --size may do']) from None
        rows.append(cells)
    print(text_table(['file', 'network', 'scale', 'parameters', f'MACs, {args.size[1]}×{args.size[0]}',
                      *['run time'] * args.run_time], rows))
    return 0
