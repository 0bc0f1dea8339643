"""What every model shares when it is not trained: how an image is restored, measured, shown and kept.

Built on BasicSR's SRModel, whose faults are mended where they are (file:line of BasicSR 1.4.2).
"""
import errno
import inspect
import math
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from udl_basicsr.archs.traits import size_multiple, window_grid
from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.functional import inference
from udl_basicsr.functional.densities import DENSITIES, not_decided
from udl_basicsr.functional.distributions import LaplaceDistribution
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.metrics.facts import block_facts, without_better
from udl_basicsr.metrics.fidelity import Fidelity
from udl_basicsr.utils.background import Background, read_ahead, spare_threads
from udl_basicsr.utils.kernels import exact_kernels
from udl_basicsr.utils.settings import ValSettings
from udl_basicsr.utils.text import some

_SHOWN_IN_TENSORBOARD = 4


class ValidatedModel(SRModel):
    """Validates ``net_g``, or its EMA, in float32.

    YAML keys beyond BasicSR's, all off unless given: ``val.tile: {size, overlap}`` (in low-quality pixels),
    ``val.self_ensemble``, ``val.save_best: {metric, dataset}``, ``val.rounded: false`` (metrics see the image before it
    is rounded to 8 bits).

    Attributes:
        net_g (nn.Module): The bare mean network, which is validated and saved.
        scores (dict): ``{data set: {image: {metric: value}}}`` of the last validation, as they were measured: a PSNR
            may be infinite. Images whose output was not finite are not among them.
    """
    scores: dict[str, dict[str, dict[str, float]]]

    @property
    def val(self) -> ValSettings:
        """What the block ``val`` says."""
        return ValSettings.of(self.opt.get('val'))

    def log_scale(self, lq: Tensor) -> Tensor | None:
        """s of one image for pictures and metrics, or None where the model has no uncertainty."""
        return None

    @property
    def density(self) -> str:
        """The distribution that s is of, for metrics with a parameter of this name."""
        return LaplaceDistribution.name

    def save_networks(self, iteration: int | str) -> None:
        """Saves the networks under a number or a name."""
        raise NotImplementedError

    def restoring(self, network) -> inference.Restore:
        """``network`` on a whole image: padded to a size it takes, tiled and self-ensembled as the YAML says."""
        run, scale, tile = network, self.opt.get('scale', 1), self.val.tile
        if (multiple := size_multiple(type(self.net_g), self.opt['network_g'])) > 1:
            run = inference.padded(run, multiple, scale)
        if tile:
            grid = window_grid(type(self.net_g), self.opt['network_g'])
            run = inference.tiled(run, tile['size'], tile['overlap'], scale, grid)
        return inference.self_ensembled(run) if self.val.self_ensemble else run

    @torch.no_grad()
    @exact_kernels()
    def test(self) -> None:
        """Restores ``self.lq`` with the bare network (the EMA's if there is one) in float32."""
        network = getattr(self, 'net_g_ema', self.net_g)
        was_training = network.training
        network.eval()
        self.output = self.restoring(network)(self.lq)
        network.train(was_training)

    def validation(self, dataloader, current_iter, tb_logger, save_img=False) -> dict:
        """Validates on one data set, its images shared among the ranks.

        BasicSR lets rank 0 validate alone through the DDP wrapper (sr_model.py:134); the ranks fall out of step.

        An output that is not finite is neither scored nor saved: its picture would be black, and have a PSNR. While a
        network is trained that is a warning, and there are no means and no best of this validation. A metric that is
        not finite for an image (two equal images have an infinite PSNR) has no mean and no best either.

        Returns:
            dict: ``{metric: mean over the images}``, all finite; the values per image are in ``self.scores``.

        Raises:
            FloatingPointError: Outputs are not finite in a test. On all ranks alike; it names network and images.
            BrokenImageError: Two images have the same name.
        """
        if self.opt['dist']:  # a rank's batch norm has seen its own images last; what is saved is rank 0's
            networks = [getattr(self, name, None) for name in ('net_g', 'net_g_ema', 'net_u')]
            buffers = [buffer for network in networks if network is not None for buffer in network.buffers()]
            for buffer in dict.fromkeys(buffers):  # once each, in the same order everywhere
                dist.broadcast(buffer, 0)
        name, metrics = dataloader.dataset.opt['name'], self.val.metrics
        results = self._validate_images(dataloader.dataset, name, current_iter, tb_logger, save_img)
        names = Counter(image for image, _ in results)
        if twice := [image for image, count in names.items() if count > 1]:  # of sets whose files cannot be seen before
            raise BrokenImageError(f'{name}: several images are called {some(twice)}, and one would take the place of '
                                   'the other in scores and results: rename them')
        self.scores[name] = {image: values for image, values in results if isinstance(values, dict)}
        for what in ('output', 'uncertainty'):
            self._refuse_not_finite(what, name, [image for image, value in results if value == what], len(results),
                                    current_iter)
        if not metrics or not self.scores[name]:
            return {}
        self.metric_results = self._means(name, metrics, len(results), current_iter)
        if not self.metric_results:
            return {}
        if self.is_train:
            self._initialize_best_metric_results(name)
            for metric in self.best_metric_results[name].keys() & self.metric_results.keys():
                self._update_best_metric_result(name, metric, self.metric_results[metric], current_iter)
        self._log_validation_metric_values(current_iter, name, tb_logger)
        self._save_best(name, current_iter)
        return dict(self.metric_results)

    def _validate_images(self, dataset, name: str, current_iter, tb_logger,
                         save_img: bool) -> list[tuple[str, dict | str]]:
        """Restores, saves and measures the images of a data set, this rank its share: what :meth:`_finish` says of
        each, in their order, from all ranks."""
        rank, world_size = self.opt['rank'], self.opt['world_size']
        measure_s = any(map(_wants_log_scale, self.val.metrics.values()))
        mine = range(rank, len(dataset), world_size)
        quiet = rank != 0 or not self.val.pbar or None  # None: only on a terminal
        with (tqdm(read_ahead(mine, dataset.__getitem__), total=len(mine), unit='image', desc=name, disable=quiet,
                   dynamic_ncols=True) as samples, Background(spare_threads(world_size)) as aside):
            for index, sample in samples:
                data = default_collate([sample])
                image = Path(data['lq_path'][0]).stem
                self.feed_data({key: value for key, value in data.items() if key != 'gt'})  # measured on the CPU
                self.test()
                show = tb_logger is not None and index < _SHOWN_IN_TENSORBOARD
                log_scale = None
                if save_img or show or measure_s:
                    with torch.no_grad():
                        log_scale = self.log_scale(self.lq)
                if log_scale is not None:
                    log_scale = log_scale[0].float().cpu().numpy()
                if log_scale is not None and np.isfinite(log_scale).all():
                    self._show_log_scale(log_scale, name, image, current_iter, tb_logger if show else None, save_img)
                path = self._image_path(name, image, current_iter) if save_img else None
                aside.call(index, self._finish, image, self.output.detach().cpu(), data.get('gt'), log_scale, path)
                del self.lq, self.gt, self.output
        results = aside.results
        if self.opt['dist']:
            gathered = [None] * world_size
            dist.all_gather_object(gathered, results)
            results = {index: result for part in gathered for index, result in part.items()}
        return [result for _, result in sorted(results.items())]

    def _refuse_not_finite(self, what: str, dataset: str, images: list[str], count: int, current_iter) -> None:
        """Warns of outputs with NaN or infinity in training, and ends a test."""
        if not images:
            return
        label = 'g' if what == 'output' else 'u'
        network = type(getattr(self, f'net_{label}', self)).__name__
        weights = self.opt['path'].get(f'pretrain_network_{label}')
        problem = (f'{dataset}: the {what} of {network} is not finite for {len(images)} of {count} images '
                   f'({some(images)})')
        if self.is_train:
            get_root_logger().warning(
                f'{problem} at iteration {current_iter}. This validation has no means and no best. If it stays so, '
                'lower the learning rate and go on from an earlier state (path.resume_state)')
            return
        raise FloatingPointError(f'{problem}, with the weights of {weights}. Nothing is scored. Have they diverged, or '
                                 'were they trained with other options of the network? Test those of an earlier '
                                 'iteration, or correct the options')

    def _means(self, dataset: str, metrics: dict, count: int, current_iter) -> dict[str, float]:
        """The mean of each metric that was measured, as a finite number, on every image."""
        scores, means = self.scores[dataset], {}
        for metric in metrics:
            odd = [image for image, values in scores.items() if not math.isfinite(values[metric])]
            if odd and self.is_train:
                get_root_logger().warning(
                    f'{dataset}: {metric} is {scores[odd[0]][metric]} for {len(odd)} of {count} images ({some(odd)}) '
                    f'at iteration {current_iter}: it has no mean and no best in this validation')
            elif not odd and len(scores) == count:
                means[metric] = float(np.mean([values[metric] for values in scores.values()]))
        return means

    def _image_path(self, dataset: str, image: str, current_iter, label: str | None = None) -> Path:
        folder = Path(self.opt['path']['visualization'])
        if self.opt['is_train']:
            name, folder = f'{image}_{current_iter}', folder / image
            return folder / f'{name}_{label}.png' if label else folder / f'{name}.png'
        suffix = label or self.val.suffix or self.opt['name']
        return folder / dataset / f'{image}_{suffix}.png'

    def _finish(self, image: str, output: Tensor, gt: Tensor | None, log_scale: np.ndarray | None,
                path: Path | None) -> tuple[str, dict | str]:
        """Saves and measures one image; in a thread of its own, so it must not touch what the next image changes.

        Returns:
            tuple: The image, and its scores, or what of it is not finite.
        """
        if not output.isfinite().all():
            return image, 'output'
        sr = _image(output)
        if path is not None:
            _write_image(sr, path)
        if not self.val.rounded:
            sr = 255 * _image(output, np.float32)
        if log_scale is not None and not np.isfinite(log_scale).all():
            return image, 'uncertainty'
        return image, self._measure(sr, None if gt is None else _image(gt), log_scale)

    def _measure(self, sr: np.ndarray, gt: np.ndarray | None, log_scale: np.ndarray | None) -> dict:
        """Every metric of ``val.metrics`` on one image; s (C, H, W) goes to those with a parameter ``log_scale``.

        Of a data set without GT, those that need none.
        """
        pair, values = {'img': sr} if gt is None else {'img': sr, 'img2': gt}, {}
        fidelity = (lambda block: None) if gt is None else Fidelity(sr, gt)
        for name, block in self.val.metrics.items():
            data = pair
            if 'device' in _arguments(block) and 'device' not in block:
                data = {**data, 'device': str(next(self.net_g.parameters(), self).device)}  # cuda:1, in any thread
            if not self.val.rounded and 'rounding' in _arguments(block) and 'rounding' not in block:
                data = {**data, 'rounding': 0.}
            if 'density' in _arguments(block) and 'density' not in block:
                if self.density not in DENSITIES:
                    raise ValueError(f'val.metrics.{name}: {not_decided(block["type"], self.density)}')
                data = {**data, 'density': self.density}
            if _wants_log_scale(block):
                if log_scale is None:
                    raise ValueError(f'val.metrics.{name}: {block["type"]} measures an uncertainty, and this model has '
                                     'none: remove it, or give network_u and its weights, path.pretrain_network_u')
                data = {**data, 'log_scale': log_scale.transpose(1, 2, 0)[..., ::-1]}  # HWC in BGR, like the images
            value = fidelity(block)
            values[name] = float(calculate_metric(data, without_better(block))) if value is None else value
        return values

    def _show_log_scale(self, log_scale: np.ndarray, dataset, image, current_iter, tb_logger, save_img) -> None:
        """The map of s (C, H, W), mean over the channels, beside the SR image and in TensorBoard."""
        encoded = encode_log_scale(log_scale.mean(0))
        if save_img:
            _write_image(encoded, self._image_path(dataset, image, current_iter, 'log_scale'))
        if tb_logger is not None:
            tb_logger.add_image(f'log_scale/{dataset}/{image}', (encoded >> 8).astype(np.uint8), current_iter,
                                dataformats='HW')

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """BasicSR's (base_model.py:50), for metrics with a direction, which need not be said in the options.

        A run that goes on may have metrics that its state does not know, or knows with the other direction.
        """
        if not hasattr(self, 'best_metric_results'):
            self.best_metric_results = {}
        known, record = self.best_metric_results.get(dataset_name, {}), {}
        for metric, block in self.val.metrics.items():
            if (facts := block_facts(block)).sign:
                new = {'better': facts.better, 'val': -facts.sign * math.inf, 'iter': -1}
                best = known.get(metric, new)
                record[metric] = best if best['better'] == facts.better else new
        self.best_metric_results[dataset_name] = record

    def _log_validation_metric_values(self, current_iter, dataset_name, tb_logger) -> None:
        """BasicSR's (sr_model.py:203), for metrics that have no best."""
        lines = [f'Validation {dataset_name}']
        bests = getattr(self, 'best_metric_results', {}).get(dataset_name, {})
        for metric, value in self.metric_results.items():
            best = f'\tBest: {bests[metric]["val"]:.4f} @ {bests[metric]["iter"]} iter' if metric in bests else ''
            lines.append(f'\t # {metric}: {value:.4f}{best}')
            if tb_logger:
                tb_logger.add_scalar(f'metrics/{dataset_name}/{metric}', value, current_iter)
        get_root_logger().info('\n'.join(lines) + '\n')

    def _save_best(self, dataset: str, current_iter) -> None:
        rule = self.val.save_best
        if self.is_train and rule and rule['dataset'] == dataset and rule['metric'] in self.metric_results:
            best = self.best_metric_results[dataset].get(rule['metric'])
            if best is None:
                raise ValueError(f'val.save_best.metric: {rule["metric"]} has no direction: give its block better: '
                                 'higher or lower')
            if best['iter'] == current_iter:
                get_root_logger().info(f'Best {rule["metric"]} on {dataset} so far: {best["val"]:.4f}. Saved as best.')
                self.save_networks('best')


def _image(output: Tensor, kind: Any = np.uint8) -> np.ndarray:
    """(H, W, C) in BGR: 8 bits, or floats in [0, 1]."""
    return np.asarray(tensor2img([output], out_type=kind))


def _arguments(block: dict) -> Container[str]:
    return inspect.signature(METRIC_REGISTRY.get(block['type'])).parameters


def _wants_log_scale(block: dict) -> bool:
    return 'log_scale' in _arguments(block)


def _write_image(image: np.ndarray, path: Path) -> None:
    try:
        imwrite(image, str(path))
    except OSError as error:  # OpenCV says neither where nor why
        raise OSError(errno.EIO, 'the image cannot be written', str(path)) from error
