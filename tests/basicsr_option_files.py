"""What BasicSR 1.4.2's own 70 option files say, as facts: model, data sets, network, and the keys and values of each.

``OPTION_FILES`` has them by their names in BasicSR's folder ``options``. Data, weights and names stand for those of the
files; where BasicSR's files differ in a path alone, so do these.
"""
from copy import deepcopy
from itertools import product

WEIGHTS = 'experiments/pretrained_models/weights.pth'
ADAM = {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]}
DISK = {'type': 'disk'}
LOADER = {'num_worker_per_gpu': 6, 'batch_size_per_gpu': 16, 'dataset_enlarge_ratio': 100, 'prefetch_mode': None}
LOGGER = {'print_freq': 100, 'save_checkpoint_freq': 5e3, 'use_tb_logger': True,
          'wandb': {'project': None, 'resume_id': None}}
DIST = {'backend': 'nccl', 'port': 29500}
FLIPS = {'use_hflip': True, 'use_rot': True}
MEAN = {'img_range': 255., 'rgb_mean': [0.4488, 0.4371, 0.4040]}


def pairs(name: str, **more) -> dict:
    return {'name': name, 'type': 'PairedImageDataset', 'dataroot_gt': f'datasets/{name}/GT',
            'dataroot_lq': f'datasets/{name}/LQ', 'io_backend': DISK, **more}


def singles(name: str) -> dict:
    return {'name': name, 'type': 'SingleImageDataset', 'dataroot_lq': f'datasets/{name}/LQ', 'io_backend': DISK}


def psnr(border: int, y: bool = False, ssim: bool = False, **more) -> dict:
    block = {'crop_border': border, 'test_y_channel': y, **more}
    names = ('psnr', 'ssim') if ssim else ('psnr', )
    return {name: {'type': f'calculate_{name}', **block} for name in names}


def steps(*milestones: int, gamma: float = 0.5) -> dict:
    return {'type': 'MultiStepLR', 'milestones': list(milestones), 'gamma': gamma}


def cosine(*periods: int, weights: list | None = None) -> dict:
    return {'type': 'CosineAnnealingRestartLR', 'periods': list(periods), 'eta_min': 1e-7,
            'restart_weights': weights or [1] * len(periods)}


def of_training(model: str, scale: int | None, sets: dict, network: dict, schedule: dict, total: int, *,
                lr: float = 1e-4, gpus: int | str = 1, ema: float | None = 0.999, loss: str | None = 'L1Loss',
                reduction: str = 'mean', weight: float = 1.0, weights: str | None = None, strict: bool = True,
                metrics: dict | None = None, more: dict | None = None, val: dict | None = None,
                path: dict | None = None, top: dict | None = None) -> dict:
    """A training file; ``more`` goes into its block train, ``top`` beside it."""
    blocks = {'pixel_opt': {'type': loss, 'loss_weight': weight, 'reduction': reduction}} if loss else {}
    opt = {'name': 'trained', 'model_type': model, 'num_gpu': gpus, 'manual_seed': 0, 'datasets': sets,
           'network_g': network, 'path': path or {'pretrain_network_g': weights, 'strict_load_g': strict,
                                                  'resume_state': None},
           'train': {'optim_g': {**ADAM, 'lr': lr}, 'scheduler': schedule, 'total_iter': total, 'warmup_iter': -1,
                     **({} if ema is None else {'ema_decay': ema}), **blocks, **(more or {})},
           'val': {'val_freq': 5e3, 'save_img': False, 'metrics': metrics} if val is None else val,
           'logger': LOGGER, 'dist_params': DIST, **(top or {})}
    if scale:
        opt['scale'] = scale
    if not opt['val']:
        del opt['val']
    return opt


def of_test(model: str, scale: int, sets: dict, network: dict, metrics: dict | None = None, *, gpus: int = 1,
         weights: str = WEIGHTS, val: dict | None = None, **top) -> dict:
    """A test file."""
    return {'name': 'tested', 'model_type': model, 'scale': scale, 'num_gpu': gpus, 'manual_seed': 0, 'datasets': sets,
            'network_g': network, 'path': {'pretrain_network_g': weights, 'strict_load_g': True},
            'val': {'save_img': True, 'suffix': None, **({'metrics': metrics} if metrics else {}), **(val or {})},
            **top}


def benchmarks(scale: int) -> dict:
    return {'test_1': pairs('Set5'), 'test_2': pairs('Set14'),
            'test_3': pairs('DIV2K100', filename_tmpl=f'{{}}x{scale}')}


def div2k(patch: int, **more) -> dict:
    return pairs('DIV2K', filename_tmpl='{}', gt_size=patch, **{**FLIPS, **LOADER, **more})


FILES: dict[str, dict] = {}

# ------------------------------------------------------------------------------------------------ EDSR, MSRResNet, RCAN
SIZES = {'M': {'num_feat': 64, 'num_block': 16, 'res_scale': 1},
         'L': {'num_feat': 256, 'num_block': 32, 'res_scale': 0.1}}
for (size, block), scale in product(SIZES.items(), (2, 3, 4)):
    edsr = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': scale, **block, **MEAN}
    FILES[f'train/EDSR/train_EDSR_{size}x{scale}'] = of_training(
        'SRModel', scale, {'train': div2k(48 * scale), 'val': pairs('Set5')}, edsr, steps(200000), 300000,
        weights=WEIGHTS if scale > 2 else None, strict=scale == 2, metrics=psnr(scale))
    FILES[f'test/EDSR/test_EDSR_{size}x{scale}'] = of_test('SRModel', scale, benchmarks(scale), edsr,
                                                           psnr(scale, ssim=True))

MSR = {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16, 'upscale': 4}
for scale in (2, 3, 4):
    msr = {**MSR, 'upscale': scale}
    FILES[f'train/SRResNet_SRGAN/train_MSRResNet_x{scale}'] = of_training(
        'SRModel', scale, {'train': div2k(32 * scale), 'val': pairs('Set5')}, msr, cosine(*[250000] * 4), 1000000,
        lr=2e-4, weights=WEIGHTS if scale < 4 else None, strict=scale == 4, metrics=psnr(scale))
    FILES[f'test/SRResNet_SRGAN/test_MSRResNet_x{scale}'] = of_test('SRModel', scale, benchmarks(scale), msr,
                                                                 psnr(scale, ssim=True))
x4 = FILES['train/SRResNet_SRGAN/train_MSRResNet_x4']
x4['datasets']['train']['meta_info_file'] = 'basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt'
x4['datasets']['val_2'] = pairs('Set14')
x4['path']['param_key_g'] = 'params'
x4['val']['metrics'] = {**psnr(4, better='higher'),
                        'niqe': {'type': 'calculate_niqe', 'crop_border': 4, 'better': 'lower'}}
x4 = FILES['test/SRResNet_SRGAN/test_MSRResNet_x4']
x4['path']['param_key_g'] = 'params'
x4['val']['metrics'] = psnr(4, ssim=True, better='higher')
LQ_ALONE = {'test_1': singles('Set5'), 'test_2': singles('Set14')}
FILES['test/SRResNet_SRGAN/test_MSRResNet_x4_woGT'] = of_test('SRModel', 4, LQ_ALONE, MSR)

RCAN = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_group': 10, 'num_block': 20,
        'squeeze_factor': 16, 'upscale': 4, 'res_scale': 1, **MEAN}
# A network of x4 in a file of x2: so is BasicSR's.
FILES['train/RCAN/train_RCAN_x2'] = of_training('SRModel', 2, {'train': div2k(96), 'val': pairs('Set5')}, RCAN,
                                             steps(200000), 300000, metrics=psnr(2))
FILES['test/RCAN/test_RCAN'] = of_test('SRModel', 4, benchmarks(4), RCAN, suffix=None, crop_border=None, save_img=True)
del FILES['test/RCAN/test_RCAN']['val']

# ------------------------------------------------------------------------------------------------------- GANs of images
VGG = {'type': 'PerceptualLoss', 'vgg_type': 'vgg19', 'use_input_norm': True, 'range_norm': False,
       'perceptual_weight': 1.0, 'style_weight': 0, 'criterion': 'l1'}
GAN = {'type': 'GANLoss', 'gan_type': 'vanilla', 'real_label_val': 1.0, 'fake_label_val': 0.0}
TURNS = {'net_d_iters': 1, 'net_d_init_iters': 0}
AGAINST = {'optim_d': ADAM, 'perceptual_opt': {**VGG, 'layer_weights': {'conv5_4': 1}},
           'gan_opt': {**GAN, 'loss_weight': 5e-3}, **TURNS}
RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 23}
VGG_D = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 64}
for name, model, network in (('SRResNet_SRGAN/train_MSRGAN_x4', 'SRGANModel', MSR),
                             ('ESRGAN/train_ESRGAN_x4', 'ESRGANModel', RRDB)):
    FILES[f'train/{name}'] = of_training(
        model, 4, {'train': div2k(128), 'val': pairs('Set14')}, network, steps(50000, 100000, 200000, 300000), 400000,
        weights=WEIGHTS, weight=1e-2, metrics=psnr(4), more=AGAINST, top={'network_d': VGG_D})
FILES['test/SRResNet_SRGAN/test_MSRGAN_x4'] = of_test('SRGANModel', 4, benchmarks(4), MSR, psnr(4, ssim=True))
RRDB = {**RRDB, 'num_grow_ch': 32}
FILES['train/ESRGAN/train_RRDBNet_PSNR_x4'] = of_training(
    'SRModel', 4, {'train': div2k(128, dataset_enlarge_ratio=1000), 'val': pairs('Set5')}, RRDB, cosine(*[250000] * 4),
    1000000, lr=2e-4, metrics=psnr(4))
FILES['test/ESRGAN/test_RRDBNet_PSNR_x4'] = of_test('SRModel', 4, benchmarks(4), RRDB, psnr(4, ssim=True))
FILES['test/ESRGAN/test_ESRGAN_x4'] = of_test('ESRGANModel', 4, benchmarks(4), RRDB, psnr(4, ssim=True))
FILES['test/ESRGAN/test_ESRGAN_x4_woGT'] = of_test('ESRGANModel', 4, LQ_ALONE, RRDB)

KERNELS = ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
SHARES = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
REAL_SET = {
    'name': 'DF2K+OST', 'type': 'RealESRGANDataset', 'dataroot_gt': 'datasets/DF2K', 'io_backend': DISK,
    'meta_info': 'datasets/DF2K/meta_info.txt', 'blur_kernel_size': 21, 'kernel_list': KERNELS, 'kernel_prob': SHARES,
    'sinc_prob': 0.1, 'blur_sigma': [0.2, 3], 'betag_range': [0.5, 4], 'betap_range': [1, 2], 'blur_kernel_size2': 21,
    'kernel_list2': KERNELS, 'kernel_prob2': SHARES, 'sinc_prob2': 0.1, 'blur_sigma2': [0.2, 1.5],
    'betag_range2': [0.5, 4], 'betap_range2': [1, 2], 'final_sinc_prob': 0.8, 'gt_size': 256, 'use_hflip': True,
    'use_rot': False, **LOADER, 'num_worker_per_gpu': 5, 'batch_size_per_gpu': 12, 'dataset_enlarge_ratio': 1}
DEGRADE = {
    'resize_prob': [0.2, 0.7, 0.1], 'resize_range': [0.15, 1.5], 'gaussian_noise_prob': 0.5, 'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3], 'gray_noise_prob': 0.4, 'jpeg_range': [30, 95], 'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3], 'resize_range2': [0.3, 1.2], 'gaussian_noise_prob2': 0.5, 'noise_range2': [1, 25],
    'poisson_scale_range2': [0.05, 2.5], 'gray_noise_prob2': 0.4, 'jpeg_range2': [30, 95], 'gt_size': 256,
    'queue_size': 180}
SHARPEN = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False}
REAL_AGAINST = {'optim_d': ADAM, **TURNS, 'gan_opt': {**GAN, 'loss_weight': 1e-1}, 'perceptual_opt': {
    **VGG, 'layer_weights': {'conv1_2': 0.1, 'conv2_2': 0.1, 'conv3_4': 1, 'conv4_4': 1, 'conv5_4': 1}}}
UNET_D = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}
FROM_EMA = {'pretrain_network_g': WEIGHTS, 'param_key_g': 'params_ema', 'strict_load_g': True, 'resume_state': None}
for scale in (2, 4):
    rrdb = {**RRDB, 'scale': 2} if scale == 2 else RRDB
    FILES[f'train/RealESRGAN/train_realesrgan_x{scale}plus'] = of_training(
        'RealESRGANModel', scale, {'train': REAL_SET}, rrdb, steps(400000), 400000, gpus='auto',
        more=REAL_AGAINST, val={},
        path=FROM_EMA, top={**SHARPEN, **DEGRADE, 'network_d': UNET_D})
    FILES[f'train/RealESRGAN/train_realesrnet_x{scale}plus'] = of_training(
        'RealESRNetModel', scale, {'train': REAL_SET}, rrdb, steps(1000000), 1000000, lr=2e-4, gpus='auto', val={},
        path={**FROM_EMA, 'strict_load_g': scale == 4}, top={'gt_usm': True, **DEGRADE})
FILES['train/LDL/train_LDL_Real_x4'] = of_training(
    'RealESRGANModel', 4, {'train': {**REAL_SET, 'num_worker_per_gpu': 4, 'batch_size_per_gpu': 4},
                           'val': singles('RealWorld38')}, RRDB, steps(400000), 400000, gpus=4, weight=1e-2,
    path=FROM_EMA,
    more={**REAL_AGAINST, 'ldl_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}},
    val={'val_freq': 5e3, 'save_img': True}, top={**SHARPEN, **DEGRADE, 'network_d': UNET_D})

FACE = {'type': 'HiFaceGAN', 'num_in_ch': 3, 'num_feat': 48, 'use_vae': False, 'z_dim': 256, 'crop_size': 512,
        'norm_g': 'spectralspadebatch3x3', 'is_train': False}
FACE_D = {'type': 'HiFaceGANDiscriminator', 'num_in_ch': 3, 'num_out_ch': 3, 'conditional_d': True, 'num_feat': 64,
          'norm_d': 'spectralinstance'}
SLOW_ADAM = {**ADAM, 'lr': 2e-4, 'betas': [0.9, 0.999]}
FILES['train/HiFaceGAN/train_hifacegan'] = of_training(
    'HiFaceGANModel', 1, {'train': pairs('FFHQ', gt_size=512, use_hflip=True, use_rot=False, **{
        **LOADER, 'num_worker_per_gpu': 1, 'batch_size_per_gpu': 1, 'dataset_enlarge_ratio': 1}),
                             'val': pairs('FFHQ_val')},
    FACE, steps(500, 1000, 2000, 3000), 5000, ema=None, loss=None,
    more={'optim_g': SLOW_ADAM, 'optim_d': SLOW_ADAM, **TURNS,
          'perceptual_opt': {**VGG, 'use_input_norm': False, 'perceptual_weight': 10.0, 'layer_weights': {
              'relu1_1': 3.125e-2, 'relu2_1': 6.25e-2, 'relu3_1': 0.125, 'relu4_1': 0.25, 'relu5_1': 1.0}},
          'gan_opt': {**GAN, 'type': 'MultiScaleGANLoss', 'gan_type': 'lsgan', 'loss_weight': 1.0},
          'feature_matching_opt': {'type': 'GANFeatLoss', 'loss_weight': 10.0, 'criterion': 'l1'}},
    metrics=psnr(4), path={'pretrain_network_g': None, 'strict_load_g': True}, top={'network_d': FACE_D})
del FILES['train/HiFaceGAN/train_hifacegan']['dist_params']
FILES['test/HiFaceGAN/test_hifacegan'] = of_test('HiFaceGANModel', 1, {'test_gt': pairs('FFHQ_val')}, FACE,
                                              psnr(4, ssim=True))
FILES['test/HiFaceGAN/test_hifacegan_woGT'] = of_test('HiFaceGANModel', 1, {'test_wild': singles('FFHQ_wild')}, FACE,
                                                   val={'suffix': 'generic'})

STYLE = {'type': 'StyleGAN2Generator', 'out_size': 256, 'num_style_feat': 512, 'num_mlp': 8, 'channel_multiplier': 2,
         'resample_kernel': [1, 3, 3, 1], 'lr_mlp': 0.01}
STYLE_D = {'type': 'StyleGAN2Discriminator', 'out_size': 256, 'channel_multiplier': 2, 'resample_kernel': [1, 3, 3, 1]}
for name in ('', '_800k'):
    FILES[f'train/StyleGAN/train_StyleGAN2_256_Cmul2_FFHQ{name}'] = of_training(
        'StyleGAN2Model', None, {'train': {
            'name': 'FFHQ', 'type': 'FFHQDataset', 'dataroot_gt': 'datasets/ffhq/ffhq_256.lmdb',
            'io_backend': {'type': 'lmdb'}, 'use_hflip': True, 'mean': [0.5] * 3, 'std': [0.5] * 3, **LOADER,
            'batch_size_per_gpu': 3}}, STYLE, steps(600000), 800000, gpus=8, ema=None, loss=None,
        more={'optim_g': {'type': 'Adam', 'lr': 2e-3}, 'optim_d': {'type': 'Adam', 'lr': 2e-3}, **TURNS,
              'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 1.0}, 'r1_reg_weight': 10,
              'path_batch_shrink': 2, 'path_reg_weight': 2, 'net_g_reg_every': 4, 'net_d_reg_every': 16,
              'mixing_prob': 0.9}, val={'val_freq': 5e3, 'save_img': True}, top={'network_d': STYLE_D})

# -------------------------------------------------------------------------------------------------------- ECBSR, SwinIR
for name, scale, color in (('x2_m4c16_prelu', 2, {'color': 'y'}), ('x4_m4c16_prelu', 4, {'color': 'y'}),
                           ('x4_m4c16_prelu_RGB', 4, {})):
    channels = 1 if color else 3
    ecbsr_sets = {'train': div2k(64 * scale, num_worker_per_gpu=12, batch_size_per_gpu=32, dataset_enlarge_ratio=10,
                                 meta_info_file='basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt',
                                 io_backend={'type': 'lmdb'}, dataroot_gt='datasets/DF2K/GT.lmdb',
                                 dataroot_lq='datasets/DF2K/LQ.lmdb', **color)}
    for key, benchmark in zip(('val', 'val_2', 'val_3', 'val_4'), ('Set5', 'Set14', 'B100', 'Urban100'), strict=True):
        ecbsr_sets[key] = pairs(benchmark, filename_tmpl=f'{{}}x{scale}', **color)
    FILES[f'train/ECBSR/train_ECBSR_{name}'] = of_training(
        'SRModel', scale, ecbsr_sets, {'type': 'ECBSR', 'num_in_ch': channels, 'num_out_ch': channels, 'num_block': 4,
                                       'num_channel': 16, 'with_idt': False, 'act_type': 'prelu', 'scale': scale},
        steps(1600000, gamma=1), 1600000, lr=5e-4, ema=0, val={
            'val_freq': 1600., 'save_img': False, 'pbar': False,
            'metrics': psnr(scale, True, ssim=True, better='higher')})

for scale in (2, 4):
    FILES[f'train/SwinIR/train_SwinIR_SRx{scale}_scratch'] = of_training(
        'SwinIRModel', scale, {'train': div2k(48 * scale, batch_size_per_gpu=4, dataset_enlarge_ratio=1,
                                              meta_info_file='basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt'),
                               'val': pairs('Set5')},
        {'type': 'SwinIR', 'upscale': scale, 'in_chans': 3, 'img_size': 48, 'window_size': 8, 'img_range': 1.,
         'depths': [6] * 6, 'embed_dim': 180, 'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': 'pixelshuffle',
         'resi_connection': '1conv'}, steps(250000, 400000, 450000, 475000), 500000, lr=2e-4, gpus='auto',
        metrics=psnr(scale))

# ---------------------------------------------------------------------------------------------------------------- video
FRAMES = {'dataroot_gt': 'datasets/video/GT', 'dataroot_lq': 'datasets/video/LQ', 'io_backend': DISK}
META = {'meta_info_file': 'basicsr/data/meta_info/meta_info_video.txt'}
REDS = {'name': 'REDS', **FRAMES, **META, 'val_partition': 'REDS4', 'gt_size': 256, 'interval_list': [1],
        'random_reverse': False, **FLIPS, **LOADER, 'dataset_enlarge_ratio': 200}
RECURRENT = {'type': 'REDSRecurrentDataset', **REDS, 'test_mode': False, 'num_frame': 15, 'batch_size_per_gpu': 4}
VIMEO = {'name': 'Vimeo90K', 'type': 'Vimeo90KRecurrentDataset', **FRAMES, **META, 'num_frame': -1, 'gt_size': 256,
         'interval_list': [1], 'random_reverse': False, **FLIPS, 'flip_sequence': True, **LOADER,
         'batch_size_per_gpu': 4, 'dataset_enlarge_ratio': 200}
WHOLE = {'name': 'REDS4', 'type': 'VideoRecurrentTestDataset', **FRAMES, 'cache_data': True, 'num_frame': -1}
VIMEO_TEST = {'name': 'Vimeo90K', 'type': 'VideoTestVimeo90KDataset', **FRAMES, **META, 'cache_data': False,
              'num_frame': 7}
FLOW = 'experiments/pretrained_models/flownet/spynet_sintel_final-3d2a1287.pth'
VSR = {'type': 'BasicVSR', 'num_feat': 64, 'num_block': 30, 'spynet_path': FLOW}
ICON = {**VSR, 'type': 'IconVSR', 'keyframe_stride': 5, 'edvr_path': 'experiments/pretrained_models/edvr.pth'}
VIDEO = {'fix_flow': 5000, 'flow_lr_mul': 0.125}
for name, network, padding in (('BasicVSR', VSR, {}), ('IconVSR', ICON, {'temporal_padding': 2})):
    reds, vimeo = {**network, **padding}, {**network, **({'temporal_padding': 3} if padding else {})}
    FILES[f'train/BasicVSR/train_{name}_REDS'] = of_training(
        'VideoRecurrentModel', 4, {'train': RECURRENT, 'val': WHOLE}, reds, cosine(300000), 300000, lr=2e-4,
        gpus='auto', loss='CharbonnierLoss', metrics=psnr(0), more=VIDEO, top={'find_unused_parameters': True})
    FILES[f'test/BasicVSR/test_{name}_REDS'] = of_test('VideoRecurrentModel', 4, {'test_1': WHOLE}, reds,
                                                            psnr(0, ssim=True))
    for blur in ('BD', 'BI'):
        FILES[f'train/BasicVSR/train_{name}_Vimeo90K_{blur}x4'] = of_training(
            'VideoRecurrentModel', 4, {'train': VIMEO, 'val': {**WHOLE, 'name': 'Vid4'}}, vimeo, cosine(300000), 300000,
            lr=2e-4, gpus=2, loss='CharbonnierLoss', metrics=psnr(0, True), more=VIDEO,
            top={'find_unused_parameters': True})
        FILES[f'test/BasicVSR/test_{name}_Vimeo90K_{blur}x4'] = of_test(
            'VideoRecurrentModel', 4, {'test_1': VIMEO_TEST}, vimeo, psnr(0, True, ssim=True),
            val={'flip_seq': True, 'center_frame_only': True})
FILES['train/BasicVSRPP/train_BasicVSRPP_REDS'] = of_training(
    'VideoRecurrentModel', 4, {'train': {**RECURRENT, 'num_frame': 30, 'batch_size_per_gpu': 1,
                                         'dataset_enlarge_ratio': 1}, 'val': WHOLE},
    {'type': 'BasicVSRPlusPlus', 'mid_channels': 64, 'num_blocks': 7, 'is_low_res_input': True, 'spynet_path': FLOW},
    cosine(600000), 600000, gpus=8, loss='CharbonnierLoss', metrics=psnr(0), more={**VIDEO, 'flow_lr_mul': 0.25},
    top={'find_unused_parameters': True})

EDVR_M = {'type': 'EDVR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_frame': 5, 'deformable_groups': 8,
          'num_extract_block': 5, 'num_reconstruct_block': 10, 'center_frame_idx': None, 'hr_in': False,
          'with_predeblur': False, 'with_tsa': True}
EDVR_L = {**EDVR_M, 'num_feat': 128, 'num_reconstruct_block': 40}
REDS_SETS = {'train': {'type': 'REDSDataset', 'dataroot_flow': None, **REDS, 'num_frame': 5, 'num_worker_per_gpu': 3,
                       'batch_size_per_gpu': 4},
             'val': {'name': 'REDS4', 'type': 'VideoTestDataset', **FRAMES, **META, 'cache_data': False, 'num_frame': 5,
                     'padding': 'reflection_circle'}}
for size, network, weights in (('M', EDVR_M, [1] * 5), ('L', EDVR_L, [1, 0.5, 0.5, 0.5, 0.5])):
    FILES[f'train/EDVR/train_EDVR_{size}_x4_SR_REDS'] = of_training(
        'EDVRModel', 4, REDS_SETS, network, cosine(50000, 100000, 150000, 150000, 150000, weights=weights), 600000,
        lr=4e-4, gpus=8, loss='CharbonnierLoss', reduction='sum', weights=WEIGHTS, strict=False, metrics=psnr(0),
        more={'tsa_iter': 50000, 'dcn_lr_mul': 1}, top={'find_unused_parameters': True})
    FILES[f'train/EDVR/train_EDVR_{size}_x4_SR_REDS_woTSA'] = of_training(
        'EDVRModel', 4, REDS_SETS, {**network, 'with_tsa': False}, cosine(*[150000] * 4, weights=weights[:4]), 600000,
        lr=4e-4, gpus=8, loss='CharbonnierLoss', reduction='sum', metrics=psnr(0), more={'dcn_lr_mul': 1})
FILES['train/EDVR/train_EDVRM_woTSA_GAN_TODO'] = of_training(
    'EDVRModel', 4, REDS_SETS, {**EDVR_L, 'with_tsa': False}, steps(50000, 100000, 200000, 300000), 400000, gpus=8,
    loss='CharbonnierLoss', reduction='sum', weight=1e-2, weights=WEIGHTS, metrics=psnr(0), more=AGAINST,
    top={'network_d': {**VGG_D, 'input_size': 256}})
FRAMES_4 = {k: v for k, v in REDS_SETS['val'].items() if k != 'meta_info_file'}
DEBLUR = {**EDVR_L, 'hr_in': True, 'with_predeblur': True}
for name, scale, network, block, gpus in (
        ('L_deblur_REDS', 1, DEBLUR, {'padding': 'replicate', **META}, 4),
        ('L_deblurcomp_REDS', 1, DEBLUR, {'padding': 'replicate', **META}, 4),
        ('L_x4_SR_REDS', 4, EDVR_L, META, 4), ('M_x4_SR_REDS', 4, EDVR_M, META, 4),
        ('L_x4_SRblur_REDS', 4, {**EDVR_L, 'with_predeblur': True}, {'padding': 'replicate', **META}, 4),
        ('L_x4_SR_Vid4', 4, {**EDVR_L, 'num_frame': 7}, {'num_frame': 7}, 4),
        ('L_x4_SR_Vimeo90K', 4, {**EDVR_L, 'num_frame': 7},
         {**META, 'type': 'VideoTestVimeo90KDataset', 'num_frame': 7}, 8)):
    FILES[f'test/EDVR/test_EDVR_{name}'] = of_test('EDVRModel', scale, {'test': {**FRAMES_4, **block}}, network,
                                                  psnr(0), gpus=gpus)

FILES['test/DUF/test_DUF_official'] = of_test(
    'VideoBaseModel', 4, {'test': {**FRAMES_4, 'type': 'VideoTestDUFDataset', 'num_frame': 7,
                                    'use_duf_downsampling': True}},
    {'type': 'DUF', 'scale': 4, 'num_layer': 52, 'adapt_official_weights': True}, psnr(8, True, ssim=True), gpus=8)
FILES['test/TOF/test_TOF_official'] = of_test(
    'VideoBaseModel', 4, {'test': {**FRAMES_4, 'num_frame': 7}}, {'type': 'TOFlow', 'adapt_official_weights': True},
    psnr(0, True, ssim=True), save_img=True)

OPTION_FILES = {f'{name}.yml': deepcopy(opt) for name, opt in FILES.items()}
