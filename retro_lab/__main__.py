from retro_lab.cli import main

main()
